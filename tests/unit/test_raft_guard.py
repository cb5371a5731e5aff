"""The rules of the guard, frame by frame. Those that close a row of the engine's defects are shown against the bare
engine in tests/defects."""

from raftspine.cluster import raft_frames as frames
from raftspine.model import NodeId
from tests.support.raft_puppet import entry
from tests.support.raft_scenes import kinds, play

# ── following ──────────────────────────────────────────────────────────────────────────────────────────────


def test_entries_are_cut_only_from_the_first_difference():
    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 0, entry(1), entry(1, "x"), entry(1, "old"), entry(1, "older"))
        assert await puppet.feed("c", 2, 0, 0, 0, entry(1), entry(1, "x"), entry(2), entry(2, "new")) == (True, 0, 5)
        assert puppet.terms() == [1, 1, 2, 2]

    play(scene)


def test_a_hole_is_refused_with_the_end_of_the_log():
    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 0, entry(1))
        assert await puppet.feed("b", 1, 7, 1, 9, entry(1, "x")) == (False, 7, 2)
        assert puppet.engine.commit == 0

    play(scene)


def test_a_leader_without_a_committed_entry_halts_the_group_and_changes_nothing():
    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 2, entry(1), entry(1, "x"))
        await puppet.hear("c", frames.APPEND, 2, 1, 1, 2, [entry(2, "instead")])
        assert "committed" in puppet.group.halted
        assert puppet.terms() == [1, 1]
        assert puppet.group.status(None).role == "halted"

    play(scene)


def test_an_append_of_an_older_term_is_told_the_newer_one():
    async def scene(puppet):
        await puppet.feed("b", 3, 0, 0, 0, entry(3))
        sent = await puppet.hear("c", frames.APPEND, 2, 1, 3, 9, [entry(2, "x")])
        assert sent == [("c", frames.STALE, 3)]
        assert puppet.terms() == [3]

    play(scene)


def test_nothing_is_applied_before_it_is_on_this_disk():
    async def scene(puppet):
        append = [0, frames.APPEND, 1, 0, 0, 2, [entry(1), entry(1, "x")]]
        puppet.group.deliver(NodeId("b"), append)
        puppet.group.stir()
        puppet.group.turn(False)
        assert puppet.engine.commit == 2
        assert puppet.engine.applied == 0
        await puppet.turn()
        assert puppet.engine.applied == 2

    play(scene)


# ── voting ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_vote_is_given_once_a_term():
    async def scene(puppet):
        assert ("b", frames.VOTED, 1) in await puppet.hear("b", frames.VOTE, 1, 0, 0, False)
        assert await puppet.hear("c", frames.VOTE, 1, 0, 0, False) == []
        assert puppet.log.vote == "b"

    play(scene)


def test_a_vote_waits_for_the_journal():
    async def scene(puppet):
        puppet.group.deliver(NodeId("b"), [0, frames.VOTE, 1, 0, 0, False])
        puppet.group.stir()
        puppet.group.turn(False)
        assert [frame[1] for _, frame in puppet.group.held] == [frames.VOTED]
        assert puppet.group.express == []
        assert puppet.journal.dirty

    play(scene)


def test_a_candidate_with_an_older_log_gets_no_vote():
    async def scene(puppet):
        await puppet.feed("b", 2, 0, 0, 0, entry(2), entry(2, "x"))
        await puppet.pause(1.1)
        assert frames.VOTED not in kinds(await puppet.hear("c", frames.VOTE, 3, 5, 1, False))
        assert frames.VOTED not in kinds(await puppet.hear("c", frames.VOTE, 3, 1, 2, False))

    play(scene)


def test_nobody_campaigns_against_a_leader_that_is_heard():
    async def scene(puppet):
        await puppet.feed("b", 1, 0, 0, 0, entry(1))
        sent = await puppet.hear("c", frames.PREVOTE, 1, 5, 9, 9)
        assert sent == [("c", frames.PREVOTED, 1, 5, False)]
        assert await puppet.hear("c", frames.VOTE, 2, 9, 9, False) == []
        assert puppet.engine.term == 1
        # … unless the leader itself asked for it,
        assert ("c", frames.VOTED, 2) in await puppet.hear("c", frames.VOTE, 2, 9, 9, True)

    play(scene)


# ── leading ────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_follower_is_told_no_commit_index_beyond_what_it_has_acknowledged():
    async def scene(puppet):
        term = await puppet.elect()
        last = puppet.log.last
        await puppet.hear("b", frames.APPENDED, term, True, last - 1, last + 1)
        assert puppet.engine.commit == last
        beats = [out for out in await puppet.turn(beat=True) if out[1] == frames.HEARTBEAT]
        assert {out[0]: out[3] for out in beats} == {"b": last, "c": 0}

    play(scene)


def test_an_acknowledgement_beyond_the_log_counts_for_nothing():
    async def scene(puppet):
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, 99)
        assert puppet.engine.commit == 0

    play(scene)


def test_an_old_rejection_makes_the_leader_resend_nothing_acknowledged():
    async def scene(puppet):
        term = await puppet.elect()
        await puppet.hear("b", frames.APPENDED, term, True, 0, 2)
        sent = await puppet.hear("b", frames.APPENDED, term, False, 0, 1)
        assert frames.APPEND not in kinds(sent)
        assert puppet.engine.commit == 1

    play(scene)


def test_a_read_needs_an_echo_from_after_the_question():
    async def scene(puppet):
        term = await puppet.elect()
        early = puppet.group.read_index()
        sent = await puppet.turn()
        assert frames.HEARTBEAT not in kinds(sent), "no round before an entry of the own term is applied"
        sent = await puppet.hear("b", frames.APPENDED, term, True, 0, 2)
        round_number = next(out[4] for out in sent if out[1] == frames.HEARTBEAT)
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term, round_number - 1)
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term, round_number + 5)
        assert not early.done()
        late = puppet.group.read_index()
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term, round_number)
        assert early.result() == 1
        assert not late.done(), "an echo from before the question proves nothing"
        await puppet.hear("b", frames.HEARTBEAT_ECHO, term, round_number + 1)
        assert late.result() == 1

    play(scene)


def test_malformed_frames_are_not_frames():
    good = [0, frames.APPEND, 1, 0, 0, 0, [[1, b"\x01"]]]
    assert frames.well_formed(good)
    bad = [
        None,
        [],
        [0, 99, 1],
        [0, frames.VOTED, "1"],
        [0, frames.VOTED, True],
        [0, frames.VOTED, -1],
        [0, frames.VOTED, 1 << 63],
        ["0", frames.VOTED, 1],
        [0, frames.VOTED, 1, 1],
        [0, frames.VOTE, 1, 2, 3, 1],
        [0, [], 1],
        [*good[:6], [[1, b""]]],
        [*good[:6], [[1, "text"]]],
        [*good[:6], [[1]]],
        [*good[:6], "entries"],
        {"kind": frames.VOTED},
    ]
    assert [frame for frame in bad if frames.well_formed(frame)] == []
