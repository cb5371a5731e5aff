"""Leases on the client: when they are believed in, what stops the body, and what is taken back."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator

import pytest

from raftspine import (
    AsyncSpine,
    Fenced,
    GateClosed,
    LeaseLost,
    LockHeld,
    Misuse,
    Spine,
    StaleToken,
    Unavailable,
    errors,
)
from raftspine.client import problems
from raftspine.client.coordination import obtain
from raftspine.client.coordination.gates import verify_chain
from raftspine.client.coordination.upkeep import Grant, Upkeep
from tests.support.fake_locks import FakeLocks
from tests.support.fake_server import FakeServer


@pytest.fixture
def locks() -> FakeLocks:
    return FakeLocks()


@pytest.fixture
def server(locks: FakeLocks) -> Iterator[FakeServer]:
    with FakeServer() as running:
        running.also = locks
        yield running


async def until(holds: Callable[[], bool]) -> None:
    """Poll a condition that tells no one when it changes."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


# ── belief ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_holder_believes_from_when_it_asked_and_not_from_when_it_was_answered() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()

        async def never(within_s: float) -> Grant:
            raise Unavailable("nobody")

        kept = Upkeep("x", never)
        kept.begin(loop.time() - 7, Grant(10, 3))
        assert 2.5 < kept.remaining() <= 3
        await kept.end()
        assert kept.remaining() == 0

    asyncio.run(run())


def test_a_lease_that_has_run_out_is_lost_before_anybody_is_asked() -> None:
    """A process that was stopped finds the end behind it."""

    async def run() -> list[str]:
        asked: list[str] = []

        async def renew(within_s: float) -> Grant:
            asked.append("asked")
            return Grant(10, 3)

        lost = asyncio.Event()
        kept = Upkeep("x", renew, lost=lambda error: lost.set())
        kept.begin(asyncio.get_running_loop().time() - 11, Grant(10, 3))
        await asyncio.wait_for(lost.wait(), 5)
        with pytest.raises(LeaseLost):
            kept.ensure()
        kept.believe(asyncio.get_running_loop().time(), Grant(10, 3))  # too late: it stays lost
        assert kept.remaining() == 0
        await kept.end()
        return asked

    assert asyncio.run(run()) == []


def test_a_late_renewal_is_told_while_there_is_time_and_once() -> None:
    async def run() -> None:
        told: list[float] = []
        working = asyncio.Event()

        async def renew(within_s: float) -> Grant:
            await working.wait()
            return Grant(10, 3)

        kept = Upkeep("x", renew, jeopardy=lambda: told.append(kept.remaining()))
        kept.begin(asyncio.get_running_loop().time(), Grant(1.0, 0.1))
        await until(lambda: bool(told))
        assert 0 < told[0] < 0.9 and len(told) == 1
        working.set()
        await until(lambda: kept.remaining() > 2)
        assert len(told) == 1
        await kept.end()

    asyncio.run(run())


def test_renewals_that_fail_end_in_a_loss_at_the_ttl(server: FakeServer, locks: FakeLocks) -> None:
    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            jeopardy: list[float] = []
            locks.silent = True
            with pytest.raises(LeaseLost):
                async with spine.lock("a", on_jeopardy=lambda lease: jeopardy.append(lease.remaining())):
                    await asyncio.Event().wait()
            assert len(jeopardy) == 1 and jeopardy[0] > 0

    asyncio.run(run())


# ── the body ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_body_is_renewed_and_its_lock_given_back(server: FakeServer, locks: FakeLocks) -> None:
    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            async with spine.lock("a") as lease:
                await until(lambda: locks.renewals >= 3)
                assert lease.token == 1 and (await lease.check()).valid
                lease.ensure()
            assert locks.held == {}
            with pytest.raises(LeaseLost):
                lease.ensure()

    asyncio.run(run())


def test_a_loss_cancels_the_body_and_is_raised_where_it_ends(server: FakeServer, locks: FakeLocks) -> None:
    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            lost: list[int] = []
            with pytest.raises(LeaseLost) as raised:
                async with spine.lock("a", on_lost=lambda lease: lost.append(lease.token)):
                    locks.lose("a")
                    await asyncio.Event().wait()
            assert lost == [1]
            assert isinstance(raised.value.__cause__, asyncio.CancelledError)
            task = asyncio.current_task()
            assert task is not None and task.cancelling() == 0

    asyncio.run(run())


def test_a_cancellation_from_elsewhere_stays_one(server: FakeServer, locks: FakeLocks) -> None:
    async def hold(spine: AsyncSpine, held: asyncio.Event) -> None:
        async with spine.lock("a"):
            held.set()
            await asyncio.Event().wait()

    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            held = asyncio.Event()
            task = asyncio.create_task(hold(spine, held))
            await held.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert locks.held == {}

    asyncio.run(run())


def test_a_body_that_ends_well_without_its_lock_hears_of_it(server: FakeServer, locks: FakeLocks) -> None:
    """Broken a moment before the end: the release finds out."""

    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            with pytest.raises(LeaseLost):
                async with spine.lock("a"):
                    locks.lose("a")

    asyncio.run(run())


def test_an_exception_of_the_body_is_not_hidden_by_a_loss(server: FakeServer, locks: FakeLocks) -> None:
    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            with pytest.raises(ZeroDivisionError):
                async with spine.lock("a"):
                    locks.lose("a")
                    raise ZeroDivisionError

    asyncio.run(run())


def test_a_holder_is_entered_again_by_its_task_only(server: FakeServer, locks: FakeLocks) -> None:
    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            holder = spine.lock("a")

            async def other() -> None:
                async with holder:
                    raise AssertionError("two tasks hold one holder")

            async with holder as outer:
                async with holder as inner:
                    assert inner is outer
                assert "a" in locks.held
                with pytest.raises(Misuse):
                    await asyncio.create_task(other())
            assert locks.held == {}

    asyncio.run(run())


# ── waiting ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wait_keeps_one_ticket_through_all_its_pieces(server: FakeServer, locks: FakeLocks) -> None:
    locks.waits = 3

    async def run() -> None:
        async with AsyncSpine(server.url) as spine, spine.lock("a", wait=60) as lease:
            assert lease.lease_id == locks.tickets[0]

    asyncio.run(run())
    assert len(locks.tickets) == 4 and len(set(locks.tickets)) == 1


def test_who_gives_up_waiting_takes_the_place_back(server: FakeServer, locks: FakeLocks) -> None:
    locks.held["a"] = ("another", 9)

    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            with pytest.raises(LockHeld) as raised:
                async with spine.lock("a", wait=0.2):
                    raise AssertionError
            assert raised.value.holder == "another" and raised.value.position == 1
            waiting = asyncio.create_task(spine.lock("a").acquire())
            await until(lambda: len(set(locks.tickets)) == 2)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    asyncio.run(run())
    assert locks.withdrawn == list(dict.fromkeys(locks.tickets))


def test_waiting_without_a_store_ends_at_once_and_a_closed_client_is_not_asked_again(server: FakeServer) -> None:
    async def run() -> None:
        spine = AsyncSpine(server.url)
        await spine.close()
        with pytest.raises(Unavailable):
            await spine.lock("a").acquire()
        with pytest.raises(Unavailable):
            await anext(spine.election("e").observe())
        with pytest.raises(Unavailable):
            await anext(spine.watch())

    asyncio.run(run())


def test_a_grant_that_was_waited_for_is_renewed_before_it_is_believed(server: FakeServer, locks: FakeLocks) -> None:
    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            holder = spine.lock("a")
            got = await obtain.once(spine.channel, obtain.lock_ways("a"), {"owner": "me"})
            lease = holder._kind(spine.channel, holder._ways, obtain.Obtained(got.sent_at - 5, got.answer))
            await lease.keep(obtain.Obtained(got.sent_at - 5, got.answer), None, None)
            assert locks.renewals == 1 and lease.remaining() > 0.3
            await lease.end()

    asyncio.run(run())


# ── the blocking face ───────────────────────────────────────────────────────────────────────────────────────


def test_a_thread_is_told_of_a_loss_in_four_ways(server: FakeServer, locks: FakeLocks) -> None:
    told: list[str] = []
    done = threading.Event()

    with Spine(server.url) as spine:

        def on_lost(lease: object) -> None:
            told.append(threading.current_thread().name)
            spine.put("from-the-callback", 1)  # a callback may use the client
            done.set()

        with pytest.raises(LeaseLost), spine.lock("a", on_lost=on_lost) as lease:
            locks.lose("a")
            assert lease.lost.wait(10) and done.wait(10)
            with pytest.raises(LeaseLost):
                lease.ensure()
    assert told == ["raftspine-lease"]


def test_a_blocking_lock_is_kept_while_its_thread_is_busy(server: FakeServer, locks: FakeLocks) -> None:
    with Spine(server.url) as spine, spine.lock("a") as lease:
        while locks.renewals < 3:
            sum(range(10_000))
        lease.ensure()
        holder = spine.lock("b")
        holder.acquire()
        with pytest.raises(Misuse):
            _in_thread(holder.acquire)
        holder.release()


def _in_thread(work: Callable[[], object]) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except errors.SpineError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    raise failed[0]


# ── guards, errors, audits ──────────────────────────────────────────────────────────────────────────────────


def test_a_guard_goes_with_the_write(server: FakeServer) -> None:
    with Spine(server.url) as spine, spine.lock("{m}/l, =") as lease:
        spine.put("m", 1, guard=lease)
        assert server.seen[-1].body["guard"] == [{"lock": "{m}/l, =", "token": lease.token, "space": "lock"}]
        spine.patch("m", content=2, guard=[lease])
        assert server.seen[-1].body["guard"][0]["token"] == lease.token
        spine.delete("m", guard=lease)
        assert server.seen[-1].headers["X-Spine-Fencing"] == f"%7Bm%7D%2Fl%2C%20%3D={lease.token}"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("lock_held", LockHeld), ("lease_not_current", LeaseLost), ("fenced", Fenced), ("gate_closed", GateClosed),
     ("stale_token", StaleToken), ("deadlock", errors.Deadlock)],
)  # fmt: skip
def test_each_refusal_has_a_class_that_is_still_a_conflict(code: str, kind: type[errors.SpineError]) -> None:
    error = problems.from_envelope(409, {"code": code, "message": "no", "details": {"unmet": [1], "highest": 3}})
    assert type(error) is kind and isinstance(error, errors.Conflict) and error.code == code
    assert isinstance(problems.from_envelope(410, {"code": "compacted", "message": "gone"}), errors.Compacted)


def test_a_chain_is_verified_offline_and_a_changed_one_found() -> None:
    from raftspine.core.ledger.audit import START, digest

    entries = []
    previous = START
    for seq in (1, 2, 3):
        content = (seq, seq, 1000 + seq, "anna", "approve", "r", {"n": seq}, False, previous)
        previous = digest(*content)
        names = ("seq", "index", "time_ms", "actor", "action", "subject", "details", "refused", "previous")
        entries.append({**dict(zip(names, content, strict=True)), "hash": previous})
    assert verify_chain(entries) is None
    assert verify_chain(entries[1:], entries[0]["hash"], 1) is None
    changed = [{**entry, "actor": "eve"} if entry["seq"] == 2 else entry for entry in entries]
    assert verify_chain(changed) == "entry 2 was changed after it was written"
    assert "missing" in (verify_chain([entries[0], entries[2]]) or "")


def test_losses_are_logged_for_whoever_listens(
    server: FakeServer, locks: FakeLocks, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        async with AsyncSpine(server.url) as spine:
            with pytest.raises(LeaseLost):
                async with spine.lock("a"):
                    locks.lose("a")
                    await asyncio.Event().wait()

    with caplog.at_level(logging.WARNING, "raftspine.client"):
        asyncio.run(run())
    assert any("a (token 1)" in record.getMessage() for record in caplog.records)
