"""A window: some faults, one after the other, under load; then healing, and the judgement on all of it.

Everything a window knows is forgotten with it, so a run of hours needs no more memory than one of a minute.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

from raftspine.checkers.history import Operation, Recorder
from raftspine.checkers.verdict import Verdict
from tests.support.lab.faults import Fault, Struck, inject
from tests.support.lab.judge import Logs, judge
from tests.support.lab.load import PATHS, Load, serve_times
from tests.support.lab.nodes import Lab, monotonic_ns

SERVE_SECONDS = 12.0
"""Within this, nodes that a fault left with a majority must take writes again. The promise is 5 s on a machine of
their own; here all nodes and their clients share two cores with whatever else runs."""

HOLD_SECONDS = (1.5, 4.0)
"""How long a fault stays in force once its survivors serve."""


@dataclass
class Episode:
    """One fault: what was done, how long its survivors needed, and the longest pauses between successful writes."""

    fault: str
    what: str
    serve_seconds: dict[str, float]
    gap_seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class Window:
    name: str
    episodes: list[Episode]
    operations: list[Operation]
    verdicts: list[Verdict]

    @property
    def failed(self) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if not verdict.ok]

    def explained(self) -> str:
        """For people: what failed, under which faults."""
        faults = "; ".join(episode.what for episode in self.episodes)
        return "\n".join([f"{self.name}: {faults}", *(f"  {v.checker}: {v.status}: {v.reason}" for v in self.failed)])


Tell = Callable[[str], None]


async def play(
    lab: Lab,
    name: str,
    faults: Sequence[Fault],
    chance: Random,
    logs: Logs,
    *,
    tell: Tell = lambda text: None,
    hold_seconds: tuple[float, float] = HOLD_SECONDS,
) -> Window:
    """Run load, strike with each fault in turn and heal it, and judge. AssertionError when nodes that should serve
    do not, or when the nodes do not come back or do not agree."""
    recorder = Recorder(monotonic_ns)
    load = Load(lab, name, Random(chance.getrandbits(64)), recorder)
    loading = asyncio.create_task(load.run())
    episodes = []
    try:
        for number, fault in enumerate(faults):
            hold = chance.uniform(*hold_seconds)
            episodes.append(await _episode(lab, f"{name}-{number}", fault, chance, recorder, hold, tell))
            if loading.done():
                break
    finally:
        load.stop()
        await loading
    tell("all nodes agree?")
    await asyncio.to_thread(lab.wait_agreement)
    tell("judging")
    verdicts = await judge(lab, recorder)
    breaks_disk = any(fault.breaks_disk for fault in faults)
    verdicts.append(logs.judge(map(lab.log, lab.ids), breaks_disk=breaks_disk))
    return Window(name, episodes, recorder.operations(), verdicts)


async def _episode(
    lab: Lab, name: str, fault: Fault, chance: Random, recorder: Recorder, hold: float, tell: Tell
) -> Episode:
    await _load_flows(recorder)
    began = monotonic_ns()
    tell(fault.name)
    struck: Struck = await asyncio.to_thread(inject, fault, lab, chance, f"{name}-probe")
    tell(struck.what)
    serve = await serve_times(lab, struck.serving, name, SERVE_SECONDS) if struck.serving else {}
    await asyncio.sleep(hold)
    tell(f"healing {fault.name}")
    await asyncio.to_thread(lab.heal)
    await asyncio.to_thread(lab.wait_ready)
    await _load_flows(recorder)
    return Episode(fault.name, struck.what, serve, longest_gaps(recorder.operations(), began))


async def _load_flows(recorder: Recorder) -> None:
    """Until each path has taken writes since now: a fault on an idle store shows nothing."""
    since, until = monotonic_ns(), time.monotonic() + 30
    while True:
        written = [op for op in recorder.operations() if op.ok and op.kind != "read" and op.invoked_at > since]
        counts = [sum(op.info["path"] == path for op in written) for path in PATHS]
        if min(counts) >= 5:
            return
        if time.monotonic() > until:
            raise AssertionError(
                f"no load: {dict(zip(PATHS, counts, strict=True))} writes in 30 s with all nodes ready"
            )
        await asyncio.sleep(0.1)


def longest_gaps(operations: Sequence[Operation], since_ns: int) -> dict[str, float]:
    """Path -> the longest time, in seconds, in which no client at all had a write acknowledged."""
    gaps = {}
    for path in PATHS:
        ends = [op.completed_at for op in operations if op.ok and op.kind != "read" and op.info["path"] == path]
        times = sorted(end for end in ends if end is not None and end >= since_ns)
        gaps[path] = max((b - a for a, b in pairwise([since_ns, *times])), default=0) / 1e9
    return gaps
