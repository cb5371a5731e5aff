"""A request that comes again: its Idempotency-Key finds what it did the first time.

The rule: a key is answered from what replicas remember, and what is answered is first made sure of again. The first
attempt may have ended with "unknown" because too few replicas held the write; a replay that only repeated "done"
would promise a quorum that never was. A ring write that a promotion beat is no write at all: such a request is new,
and the log's to decide.
"""

from typing import Any

from msgspec import UNSET

from raftspine.core.hlc import ms_of
from raftspine.core.session import Token
from raftspine.errors import Conflict, InvalidRequest
from raftspine.model import GroupId, Memory, Version
from raftspine.ports import Clock
from raftspine.services import compose
from raftspine.services.answers import Answers
from raftspine.services.replica import RingReplica
from raftspine.services.requests import DIGEST_BYTES, digest_of, fingerprint_of
from raftspine.services.ring import RingPath
from raftspine.services.shown import shown_memory
from raftspine.services.values import Answer, Ask, Draft


def request_of(key: str, op: str, id: str, *body: Any) -> bytes:
    """By what the ring remembers a request: the digest of its key, then the fingerprint of what it asked for."""
    return digest_of(key) + fingerprint_of(op, id, *body)


class Replays:
    """Answers requests that the ring has carried out already."""

    def __init__(self, replica: RingReplica, ring: RingPath, answers: Answers, clock: Clock) -> None:
        self._replica = replica
        self._ring = ring
        self._answers = answers
        self._clock = clock

    async def find(
        self, ask: Ask, token: Token | None, group: GroupId, id: str, request: bytes, *, draft: Draft | None = None
    ) -> Answer | None:
        """The first attempt's answer, made sure of again; None for a new request, and for one the ring tried and a
        promotion beat. Raises Conflict(`request_voided`), InvalidRequest(`idempotency_key_reused`), Unavailable,
        Promoted."""
        digest, fingerprint = request[:DIGEST_BYTES], request[DIGEST_BYTES:]
        found = await self._ring.find_request(group, digest, everywhere=not ask.first_attempt)
        if found is None:
            return None
        if found.void:
            raise Conflict("this request was voided and will never apply", code="request_voided")
        if found.fingerprint != fingerprint:
            raise InvalidRequest(
                "this Idempotency-Key was used for another request",
                code="idempotency_key_reused",
                field="Idempotency-Key",
            )
        strong = self._replica.strong(group, id)
        if strong is not None and strong.shadow.get(found.origin, 0) < found.seq:
            return None
        record = None if strong is not None else await self._ring.merged(group, id)
        for version in record.versions if record else ():
            if version.dot == (found.origin, found.seq):
                await self._ring.resend(group, version).future
                return self._answer(token, group, version, created=found.created)
        # Replaced since: what it had stored is gone, so the request says it again; a change of fields cannot.
        if draft is not None:
            tags = () if draft.tags is UNSET else draft.tags
            memory: Memory | None = compose.fresh(draft, tags, None, ask.agent_id, ms_of(found.stamp))
        else:
            memory = shown_memory(strong, record, self._clock.wall_ms())
        version = Version(id, found.origin, found.seq, found.stamp, {}, memory)
        return self._answer(token, group, version, created=found.created)

    def _answer(self, token: Token | None, group: GroupId, version: Version, *, created: bool) -> Answer:
        return self._answers.written(token, group, version, self._answers.kept(version), created=created)
