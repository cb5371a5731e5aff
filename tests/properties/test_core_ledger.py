"""The ledger against a dumb twin, and its replicas against one another.

The twin keeps one plain dictionary per id and knows the ring as sets of dots; it is told what the coordinator
saw. Three replicas apply the same commands over *different* local ring states, because only conflicts may
depend on those.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from raftspine.core import merge
from raftspine.core.ledger import commands, machine, outcomes
from raftspine.core.ledger.commands import Condition, DeleteMemory, PatchMemory, PutMemory, VoidRequest
from raftspine.core.ledger.outcomes import Outcome, Status
from raftspine.core.ledger.state import Conflict, Effect, Place, SetRing
from raftspine.model import Dot, Memory, RingRecord, Version
from tests.support.ledger_store import GROUP, LedgerStore

IDS = ("a", "b")
DAY_MS = 24 * 3600 * 1000


class Twin:
    """What should be stored, told as plainly as possible."""

    def __init__(self) -> None:
        self.log: dict[str, dict[str, Any]] = {}  # id -> memory | None, version, covers (dots)
        self.moved: dict[str, Dot] = {}  # id -> the dot it left the log with
        self.answers: dict[bytes, tuple[bytes, Outcome | None, int]] = {}
        self.moves = 0

    def base(self, id: str, saw: list[Version], known: set[Dot], now: int) -> tuple[Any, ...]:
        entry = self.log.get(id)
        if entry and entry["memory"] is not None and not expired(entry["memory"], now):
            return entry["memory"], entry["version"], "log"
        hidden = entry["covers"] if entry else set()
        visible = sorted((v for v in saw if v.dot not in hidden), key=merge.rank)
        if visible and visible[-1].memory is not None and not expired(visible[-1].memory, now):
            return visible[-1].memory, f"r-{visible[-1].origin}-{visible[-1].seq}", "ring"
        return None, None, "nowhere"


def expired(memory: Memory, now: int) -> bool:
    return memory.expires_at_ms is not None and memory.expires_at_ms <= now


def says(memory: Memory) -> tuple[Any, ...]:
    return memory.content, memory.tags, memory.ttl_seconds


class LedgerAndTwin(RuleBasedStateMachine):
    """Commands and ring writes in any order, with pictures of the ring that may be old."""

    @initialize()
    def start(self) -> None:
        self.now = 1_000_000
        self.index = 0
        self.replicas = [LedgerStore(), LedgerStore(), LedgerStore()]
        self.twin = Twin()
        self.everything: dict[str, list[Version]] = {id: [] for id in IDS}
        self.pictures: dict[str, list[tuple[RingRecord | None, set[Dot]]]] = {id: [(None, set())] for id in IDS}
        self.ring_seq = 0

    # ── events ────────────────────────────────────────────────────────────────────────────────────────────

    @rule(ms=st.sampled_from([1, 500, 2000, DAY_MS]))
    def time_passes(self, ms: int) -> None:
        self.now += ms

    @rule(id=st.sampled_from(IDS), content=st.integers(0, 2), where=st.integers(0, 2), delete=st.booleans())
    def ring_write(self, id: str, content: int, where: int, delete: bool) -> None:
        """Some node writes to the ring, over the newest picture, and one replica hears of it at once."""
        record = self.pictures[id][-1][0]
        self.ring_seq += 1
        memory = None if delete else Memory(content, created_at_ms=7, updated_at_ms=7)
        stamp = max(self.now << 16, merge.floor(record) + 1)
        version = merge.mint(record, id, "n~1", self.ring_seq, stamp, memory)
        self.replicas[where].put_ring(version)
        self._picture(version)

    @rule(
        id=st.sampled_from(IDS),
        content=st.integers(0, 2),
        tags=st.sampled_from([(), ("critical",)]),
        keep=st.booleans(),
        demote=st.booleans(),
        ttl=st.sampled_from([None, None, 1]),
        rest=st.data(),
    )
    def put(
        self,
        id: str,
        content: int,
        tags: tuple[str, ...],
        keep: bool,
        demote: bool,
        ttl: int | None,
        rest: st.DataObject,
    ) -> None:
        memory = Memory(content, tags=tags, ttl_seconds=ttl)
        common = self._common(id, rest)
        self._run(PutMemory(id, memory, keep_tags=keep, demote=demote, **common))

    @rule(
        id=st.sampled_from(IDS),
        changes=st.fixed_dictionaries(
            {},
            optional={
                "content": st.integers(0, 2),
                "tags": st.sampled_from([[], ["critical"]]),
                "ttl_seconds": st.sampled_from([None, 1]),
                "colour": st.just("red"),
            },
        ),
        demote=st.booleans(),
        rest=st.data(),
    )
    def patch(self, id: str, changes: dict[str, Any], demote: bool, rest: st.DataObject) -> None:
        self._run(PatchMemory(id, changes, demote=demote, **self._common(id, rest)))

    @rule(id=st.sampled_from(IDS), rest=st.data())
    def delete(self, id: str, rest: st.DataObject) -> None:
        self._run(DeleteMemory(id, **self._common(id, rest)))

    @rule(key=st.sampled_from([b"k1", b"k2"]))
    def void(self, key: bytes) -> None:
        outcome = self._apply(VoidRequest(key))
        known = self._answer(key)
        if known is None:
            self.twin.answers[key] = (b"", None, self.now + DAY_MS)
        first = None if known is None else known[1]
        assert outcome == first if first is not None else outcome.status is Status.VOIDED

    @rule(data=st.binary(max_size=12))
    def nonsense(self, data: bytes) -> None:
        if data[:1] <= b"\x02":
            before = [dict(part) for part in self.replicas[0].replicated()]
            for store in self.replicas:
                outcome, effects = machine.apply_encoded(store, data, Place(self.index + 1, 0), GROUP, self.now)
                store.perform(effects)
            if outcome.status is Status.MALFORMED:
                assert [dict(part) for part in self.replicas[0].replicated()] == before

    # ── what must hold ────────────────────────────────────────────────────────────────────────────────────

    @invariant()
    def replicas_agree(self) -> None:
        one, two, three = (store.replicated() for store in self.replicas)
        assert one == two == three

    @invariant()
    def the_log_holds_what_the_twin_holds(self) -> None:
        strongs = self.replicas[0].strongs
        assert set(strongs) == set(self.twin.log)
        for id, entry in self.twin.log.items():
            record = strongs[id]
            assert f"s-{GROUP}-{record.index}-{record.sub}" == entry["version"]
            assert record.memory == entry["memory"]
            assert {v.dot for v in self.everything[id] if merge.covers(record.shadow, v)} == entry["covers"]

    # ── machinery ─────────────────────────────────────────────────────────────────────────────────────────

    def _common(self, id: str, rest: st.DataObject) -> dict[str, Any]:
        known = self.pictures[id]
        age = rest.draw(st.integers(1, min(3, len(known))), label="age of the picture")
        version = self.twin.base(id, *self._saw(known[-1]), self.now)[1]
        texts = [None, None, "*", "s-3-1-0", version]
        return {
            "expected": Condition(
                rest.draw(st.sampled_from(texts)), rest.draw(st.sampled_from([False, False, True]))
            ),
            "request": rest.draw(st.sampled_from([b"", b"", b"k1", b"k2"])),
            "fingerprint": rest.draw(st.sampled_from([b"f1", b"f1", b"f2"])),
            "agent": rest.draw(st.sampled_from(["", "bob"])),
            "ring": known[-age][0],
        }

    @staticmethod
    def _saw(picture: tuple[RingRecord | None, set[Dot]]) -> tuple[list[Version], set[Dot]]:
        record, known = picture
        return ([] if record is None else list(record.versions)), known

    def _picture(self, version: Version) -> None:
        record, known = self.pictures[version.id][-1]
        self.everything[version.id].append(version)
        self.pictures[version.id].append((merge.put(record, version).record, known | {version.dot}))

    def _answer(self, key: bytes) -> tuple[bytes, Outcome | None, int] | None:
        found = self.twin.answers.get(key)
        return None if found is None or found[2] <= self.now else found

    def _apply(self, command: Any) -> Outcome:
        """All replicas, from bytes; outcomes and replicated effects must be the same."""
        self.index += 1
        data = commands.encode(command)
        seen: list[tuple[Outcome, list[Effect]]] = []
        for store in self.replicas:
            before = store.rings.get(getattr(command, "id", ""))
            had_live = self._lives(store, getattr(command, "id", ""))
            outcome, effects = machine.apply_encoded(store, data, Place(self.index, 0), GROUP, self.now)
            store.perform(effects)
            for effect in effects:
                if isinstance(effect, Conflict):
                    assert before is not None
                    assert not had_live, "only a promotion finds losers"
                    assert effect.loser in before.versions
            seen.append((outcome, [e for e in effects if not isinstance(e, Conflict)]))
        assert seen[0] == seen[1] == seen[2]
        outcome = seen[0][0]
        assert outcomes.decode(outcomes.encode(outcome)) == outcome
        for effect in seen[0][1]:
            if isinstance(effect, SetRing):
                self._picture(effect.version)
        return outcome

    def _lives(self, store: LedgerStore, id: str) -> bool:
        record = store.strong(id)
        return record is not None and record.memory is not None and not expired(record.memory, self.now)

    def _run(self, command: Any) -> None:
        known = self._answer(command.request) if command.request else None
        picture = next(p for p in self.pictures[command.id] if p[0] is command.ring)
        expected = self._predict(command, picture)
        latest_before = self.pictures[command.id][-1][0]
        outcome = self._apply(command)
        if known is not None:
            fingerprint, first, _ = known
            if first is None:
                assert outcome.status is Status.VOIDED
            elif fingerprint != command.fingerprint:
                assert outcome.status is Status.REQUEST_REUSED
            else:
                assert outcomes.encode(outcome) == outcomes.encode(first), "byte for byte"
            return
        assert outcome.status == expected["status"], (outcome, expected)
        self._adopt(command, picture, outcome, expected)
        if outcome.status is Status.DEMOTED and latest_before is not None and outcome.ring is not None:
            assert not set(outcome.ring.context) - set(latest_before.context) - {f"log-{GROUP}"}
        if command.request and outcome.status is not Status.RING_BEHIND:
            self.twin.answers[command.request] = (command.fingerprint, outcome, self.now + DAY_MS)

    def _predict(self, command: Any, picture: tuple[RingRecord | None, set[Dot]]) -> dict[str, Any]:
        """Status and memory, by the rules as the documentation tells them."""
        id = command.id
        saw, known = self._saw(picture)
        if id in self.twin.moved and id not in self.twin.log and self.twin.moved[id] not in known:
            return {"status": Status.RING_BEHIND}
        old, version, where = self.twin.base(id, saw, known, self.now)
        condition = command.expected
        holds = not (condition.absent and old is not None) and (
            condition.version is None or (old is not None and condition.version in ("*", version))
        )
        if isinstance(command, DeleteMemory):
            if old is None:
                return {"status": Status.ABSENT}
            return {"status": Status.DELETED if holds else Status.VERSION_CONFLICT, "memory": None}
        if isinstance(command, PatchMemory):
            if old is None:
                return {"status": Status.VERSION_CONFLICT if condition.version is not None else Status.ABSENT}
            if "colour" in command.changes:
                return {"status": Status.INVALID}
            content = command.changes.get("content", old.content)
            tags = tuple(command.changes.get("tags", old.tags))
            ttl = command.changes.get("ttl_seconds", old.ttl_seconds)
            prolongs = command.changes.get("ttl_seconds") is not None
        else:
            content, ttl = command.memory.content, command.memory.ttl_seconds
            tags = old.tags if command.keep_tags and old is not None else command.memory.tags
            prolongs = ttl is not None
        stays = old is not None and (where == "ring") == command.demote
        equal = old is not None and (content, tags, ttl) == says(old)
        result = {"says": (content, tags, ttl), "old": old, "prolongs": prolongs}
        if not holds:
            same_writer = old is not None and old.updated_by == command.agent != ""
            again = stays and equal and same_writer and not command.request and not condition.absent
            return {**result, "status": Status.EQUAL if again else Status.VERSION_CONFLICT}
        if stays and equal and not prolongs:
            return {**result, "status": Status.EQUAL}
        if command.demote:
            return {**result, "status": Status.DEMOTED}
        return {**result, "status": Status.CREATED if old is None else Status.CHANGED}

    def _adopt(self, command: Any, picture: Any, outcome: Outcome, expected: dict[str, Any]) -> None:
        """Check what was stored and take it over into the twin."""
        id, status = command.id, outcome.status
        entry = self.twin.log.get(id)
        alive = entry is not None and entry["memory"] is not None and not expired(entry["memory"], self.now)
        covers = set(entry["covers"]) if entry is not None else set()
        if not alive or status is Status.DELETED:
            covers |= picture[1]
        if status in (Status.CREATED, Status.CHANGED, Status.DEMOTED):
            memory, old = outcome.memory, expected["old"]
            assert memory is not None
            assert says(memory) == expected["says"]
            assert outcome.created == (old is None)
            assert memory.created_at_ms == (self.now if old is None else old.created_at_ms)
            assert memory.updated_at_ms == self.now
            assert memory.updated_by == command.agent
            kept = isinstance(command, PatchMemory) and not expected["prolongs"]
            ttl = expected["says"][2]
            if kept and "ttl_seconds" not in command.changes:
                assert memory.expires_at_ms == old.expires_at_ms
            else:
                assert memory.expires_at_ms == (None if ttl is None else self.now + ttl * 1000)
        if status is Status.DEMOTED:
            assert outcome.ring is not None
            self.twin.moves += 1
            assert outcome.ring.dot == Dot(f"log-{GROUP}", self.twin.moves)
            self.twin.moved[id] = outcome.ring.dot
            self.twin.log.pop(id, None)
        elif status in (Status.CREATED, Status.CHANGED, Status.DELETED):
            assert outcome.version == f"s-{GROUP}-{self.index}-0"
            self.twin.log[id] = {"memory": outcome.memory, "version": outcome.version, "covers": covers}


LedgerAndTwin.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLedgerAndTwin = LedgerAndTwin.TestCase
