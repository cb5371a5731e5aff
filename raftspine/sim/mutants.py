"""Our own bugs, put in on purpose: whoever claims that the simulator would find one can be asked to show it.

Each mutant breaks one rule that another file states, by putting another function (or value) in the place of one that
keeps it. `tests/simulation/test_mutants.py` plays each and says with which seeds, or by which placed scenario, it is
caught. A target that is no longer there is an error and not a mutant that harms nothing.
"""

from asyncio import Future, get_running_loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from raftspine.cluster import raft_frames
from raftspine.cluster.raft_flow import Flow
from raftspine.cluster.raft_group import RaftGroup
from raftspine.cluster.raft_guard import Guard
from raftspine.cluster.raft_reads import Reads, _Round
from raftspine.errors import Misuse
from raftspine.services.catchup import Catchup
from raftspine.services.replica import RingReplica
from raftspine.storage.journal import Journal

Change = tuple[Any, str, Callable[[Any], Any]]
"""Whose attribute, its name, and what is put there, made from what was there."""


class Mutant(NamedTuple):
    what: str
    changes: tuple[Change, ...]


# ── the journal ───────────────────────────────────────────────────────────────────────────────────────────────


def _write_without_sync(real: Any) -> Any:
    def write(self: Any) -> "Future[None]":
        records, self._records, self._touched = self._records, [], {}
        for payload in self._payloads(records):
            self._log.append(payload)
        done: Future[None] = get_running_loop().create_future()
        done.set_result(None)
        return done

    return write


# ── the rules for frames ──────────────────────────────────────────────────────────────────────────────────────


def _any_answer(real: Any) -> Any:
    def current_answer(self: Any, source: Any, term: int) -> bool:
        if term > self._engine.term:
            self._engine.adopt(term, source)
        return bool(self._engine.leads)

    return current_answer


def _cut_always(real: Any) -> Any:
    def take(self: Any, source: Any, term: int, previous: int, commit: int, sent: list[Any]) -> None:
        if previous < self._log.last:
            self._superseded(previous + 1)
        rows = [(command, previous + 1 + place, t) for place, (t, command) in enumerate(sent)]
        end = previous + len(sent)
        self._engine.store(source, term, min(commit, end), previous, rows)
        self._emit(source, raft_frames.APPENDED, term, True, previous, end + 1)

    return take


def _uncapped_run(real: Any) -> Any:
    def run(self: Any, now: float, *, beat: bool, context: int) -> None:
        engine, commit = self._engine, self._engine.commit
        self._cut = (0, [])
        for peer, follower in self._followers.items():
            sent = self._feed(peer, follower, now)
            if beat:
                self._emit(peer, raft_frames.HEARTBEAT, engine.term, commit, context)
            elif not sent and commit > follower.told:
                self._emit(peer, raft_frames.COMMITTED, engine.term, commit)
            follower.told = max(follower.told, commit)

    return run


def _every_vote(real: Any) -> Any:
    def voted(self: Any, source: Any, term: int) -> None:
        if term == self._engine.term:
            self._engine.vote_given(source, term)

    return voted


# ── reads ─────────────────────────────────────────────────────────────────────────────────────────────────────


def _old_context(real: Any) -> Any:
    def begin(self: Any, commit: int) -> bool:
        if not self._waiting or self._rounds:
            return False
        self.context = max(self.context, 1)
        self._rounds.append(_Round(self.context, commit, self._waiting))
        self._waiting = []
        return True

    return begin


def _unconfirmed_read(real: Any) -> Any:
    def read_index(self: Any) -> "Future[int]":
        if not self.engine.leads:
            return real(self)  # type: ignore[no-any-return]
        reader: Future[int] = get_running_loop().create_future()
        reader.set_result(self.engine.commit)
        return reader

    return read_index


# ── the ring ──────────────────────────────────────────────────────────────────────────────────────────────────


class _Forgetful:
    """A vector that has never seen anything."""

    def __init__(self, vector: Any) -> None:
        self._vector = vector

    def covers(self, origin: str, seq: int) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._vector, name)


def _store_again(real: Any) -> Any:
    def accept(self: Any, group: Any, version: Any, **more: Any) -> Any:
        vector = self._vectors[group]
        self._vectors[group] = _Forgetful(vector)
        try:
            return real(self, group, version, **more)
        finally:
            self._vectors[group] = vector

    return accept


def _same_origin(real: Any) -> Any:
    def init(self: Any, node: Any, *args: Any, **more: Any) -> None:
        real(self, node, *args, **more)
        self.origin = f"{node}~same"

    return init


def _tell_at_once(real: Any) -> Any:
    async def round(self: Any) -> None:
        self._tell({group: self._replica.vector(group).copy() for group in self._replica.groups()})
        await real(self)

    return round


MUTANTS: dict[str, Mutant] = {
    "drop-fsync": Mutant(
        "the journal calls written what no sync covers", ((Journal, "_write", _write_without_sync),)
    ),
    "unsynced-votes": Mutant(
        "votes leave before the journal is synced",
        ((raft_frames, "HELD", lambda held: held - {raft_frames.VOTE, raft_frames.VOTED}),),
    ),
    "no-term-stamp": Mutant("answers of an older term count", ((Guard, "_current_answer", _any_answer),)),
    "truncate-always": Mutant("an append cuts what follows it", ((Guard, "_take", _cut_always),)),
    "reuse-read-context": Mutant("all read rounds have one number", ((Reads, "begin", _old_context),)),
    "deposed-reads": Mutant("a leader reads without asking", ((RaftGroup, "read_index", _unconfirmed_read),)),
    "no-commit-cap": Mutant("a heartbeat names any commit index", ((Flow, "run", _uncapped_run),)),
    "vote-twice": Mutant("a repeated vote counts again", ((Guard, "_voted", _every_vote),)),
    "covered-not-inert": Mutant("a superseded version is stored again", ((RingReplica, "accept", _store_again),)),
    "reuse-dots": Mutant("a node's origin is the same in each life", ((RingReplica, "__init__", _same_origin),)),
    "advertise-unsynced": Mutant("vectors are told before they are on disk", ((Catchup, "round", _tell_at_once),)),
}


@contextmanager
def mutated(name: str | None) -> Iterator[None]:
    """With this bug in the code; with none when `name` is None. Misuse for an unknown one, or when what it replaces
    is no longer there."""
    if name is None:
        yield
        return
    if name not in MUTANTS:
        raise Misuse(f"unknown mutant {name!r}; there are {', '.join(MUTANTS)}")
    before: list[tuple[Any, str, Any]] = []
    try:
        for owner, attribute, make in MUTANTS[name].changes:
            if attribute not in vars(owner):
                raise Misuse(f"mutant {name}: {owner.__name__} has no {attribute} any more; adapt sim/mutants.py")
            before.append((owner, attribute, vars(owner)[attribute]))
            setattr(owner, attribute, make(vars(owner)[attribute]))
        yield
    finally:
        for owner, attribute, value in before:
            setattr(owner, attribute, value)
