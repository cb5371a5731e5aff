"""A deployment goes through a gate: requested by one person, approved by another, tested, stopped by a freeze,
finished.

Run it against a development cluster (`raftspine dev`): python examples/deployment_pipeline.py
"""

import asyncio
import os

from raftspine import AsyncSpine, GateClosed

URL = os.environ.get("RAFTSPINE_URL", "http://127.0.0.1:8788").split(",")
POLICY = {
    "conditions": [{"type": "approval", "min": 1}, {"type": "check", "name": "tests"}],
    "concurrent": 1,
}
ARTIFACT = "sha256:4f2a"
STEPS = ("migrate the schema", "switch the traffic", "remove the old version")


async def main() -> None:
    async with AsyncSpine(URL, agent_id="pipeline") as spine:
        gate = spine.gate("prod/shop")
        await gate.open(policy=POLICY, reason="two eyes and green tests", by="operations")

        request = await gate.request(ARTIFACT, subject="shop", by="bob")
        try:
            await gate.admit(request["id"], ARTIFACT, by="bob")
        except GateClosed as closed:
            print("not yet:", "; ".join(unmet["reason"] for unmet in closed.unmet))

        await gate.approve(request["id"], ARTIFACT, comment="looks right", by="anna")
        await gate.report(request["id"], ARTIFACT, "tests", ok=True, by="ci")
        admission = await gate.admit(request["id"], ARTIFACT, wait=10, by="bob")
        token = admission["fencing_token"]

        for step in STEPS:
            if step == "switch the traffic":  # an incident elsewhere: operations stop everything for a moment
                freeze = await spine.freezes.freeze("an incident elsewhere", scope="prod/", by="operations")
                try:
                    await gate.verify(request["id"], token, ARTIFACT)
                except GateClosed as closed:
                    print("stopped before:", step, "because of", closed.message)
                await spine.freezes.lift(freeze["freeze_id"], reason="over", by="operations")
            await gate.verify(request["id"], token, ARTIFACT)  # nothing irreversible without this
            print("done:", step)

        ended = await gate.complete(request["id"], token, ok=True, by="bob")
        print("the request is", ended["state"])
        print("on record:", ", ".join(f"{entry['action']} by {entry['actor']}" for entry in await gate.audit()))


asyncio.run(main())
