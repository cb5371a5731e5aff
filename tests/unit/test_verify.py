"""`raftspine verify` against fake nodes, honest and lying, and its parts by hand."""

import asyncio
import json
import socket
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from raftspine.checkers.history import Operation, Recorder, load
from raftspine.cli import main
from raftspine.errors import Conflict, NotFound, PreconditionFailed, SpineError, Unavailable, Unknown
from raftspine.system import SystemClock, SystemEntropy
from raftspine.verify import attempt, summary
from raftspine.verify.judge import CHECKS, Judged, judge, overall
from raftspine.verify.report import page
from raftspine.verify.run import Options, Outcome, Sighting, Verification
from raftspine.verify.workloads import WORKLOADS
from tests.support.fake_server import FakeServer, Fault, Seen
from tests.support.histories import op


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def run(url: str, operations: int = 600, only: str = "", **options: Any) -> tuple[Outcome, list[Judged]]:
    """A run of so many operations, `only` of these workloads where given. The rate is beyond reach, so that clients
    are always behind their schedule: they must still notice that the work is over."""
    chosen = Options([url], **{"seconds": 60.0, "rate": 1e6, "clients": 8, **options})
    left = operations

    async def work() -> Outcome:
        def count(_: Operation) -> None:
            nonlocal left
            left -= 1
            if not left:
                verification.stop()

        workloads = [w for w in WORKLOADS if not only or w.name in only.split()]
        verification = Verification(chosen, SystemClock(), SystemEntropy(), told=count, workloads=workloads)
        return await verification.run()

    outcome = asyncio.run(work())
    return outcome, judge(outcome.history, outcome.kept)


def broken(judged: list[Judged]) -> set[str]:
    return {one.check.name for one in judged if one.verdict.status == "violation"}


# ── whole runs ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_honest_store_keeps_every_promise_and_is_left_clean(server: FakeServer) -> None:
    outcome, judged = run(server.url)
    assert [one.verdict for one in judged if not one.verdict.ok] == []
    assert all(one.verdict.judged > 5 for one in judged), [(one.check.name, one.verdict.judged) for one in judged]
    assert {o.info.get("workload") for o in outcome.history} >= {name for check in CHECKS for name in check.workloads}
    assert outcome.left == []
    assert server.memories == {}
    assert (outcome.ended_ns - outcome.started_ns) / S < 60, "it was ended early"
    written = {seen.path for seen in server.seen if seen.method == "PUT"}
    assert all(path.startswith(f"/v1/memories/verify%2F{outcome.run_id}%2F") for path in written), written


def test_keep_leaves_what_was_written(server: FakeServer) -> None:
    outcome, _ = run(server.url, 50, keep=True)
    assert server.memories
    assert all(id.startswith(f"verify/{outcome.run_id}/") for id in server.memories)


class Liar(FakeServer):
    """Honest in all but one thing."""

    def __init__(self, lie: str) -> None:
        super().__init__()
        self._lie = lie
        self._old: dict[str, dict[str, Any]] = {}
        self._count = 0

    def _now(self, every: int) -> bool:
        self._count += 1
        return self._count % every == 0

    def _answer(self, seen: Seen) -> web.Response:
        if self._lie == "repeats again" and seen.method == "PUT":
            seen.headers.pop("Idempotency-Key", None)
        return super()._answer(seen)

    def _dispatch(self, seen: Seen) -> web.Response:
        kind = seen.path.split("%2F")[-2] if "%2F" in seen.path else ""
        id = seen.path.removeprefix("/v1/memories/").replace("%2F", "/")
        lie = self._lie
        if seen.method == "PUT":
            if lie == "loses acknowledged writes" and (kind == "shared" or (kind == "register" and self._now(6))):
                return web.json_response(self._record(id, seen.body), status=201)
            if id in self.memories:
                self._old[id] = dict(self.memories[id])
            if lie == "swaps without looking" and kind in ("versions", "counter"):
                seen.body.pop("expected_version", None)
                seen.headers.pop("If-None-Match", None)
        if seen.method == "DELETE" and lie == "forgets deletes":
            return web.Response(status=204)
        if seen.method == "GET" and id in self._old and lie == f"stale {kind}" and self._now(4):
            return web.json_response(self._old[id])
        return super()._dispatch(seen)


@pytest.mark.parametrize(
    ("lie", "workloads", "accused"),
    [
        ("stale register", "register", {"strong reads and writes"}),
        ("stale session", "session", {"read-your-writes"}),
        ("stale causal", "causal", {"causal"}),
        ("loses acknowledged writes", "register shared", {"strong reads and writes", "no lost acknowledged write"}),
        ("swaps without looking", "versions counter", {"compare-and-set", "counters"}),
        ("forgets deletes", "register session", {"strong reads and writes", "read-your-writes"}),
        ("repeats again", "retry", {"exactly once"}),
    ],
)
def test_a_store_that_lies_is_found_out(lie: str, workloads: str, accused: set[str]) -> None:
    with Liar(lie) as server:
        outcome, judged = run(server.url, 400, workloads)
    assert broken(judged) >= accused, [one.verdict for one in judged if not one.verdict.ok]
    assert overall(judged) == "violation"
    for one in judged:
        if one.verdict.status == "violation":
            assert one.verdict.window and one.verdict.reason
    assert "At least one promise was broken" in page(outcome, judged, {})


def test_refusals_and_lost_answers_are_recorded_and_accuse_nobody() -> None:
    faults = (Fault(503), Fault(504, "outcome_unknown"), Fault(cut=True), Fault(cut=True, applied=True), Fault(429))

    class Shaky(FakeServer):
        async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
            if len(self.seen) % 5 == 4 and request.path.startswith("/v1/memories"):
                self.faults.append(faults[len(self.seen) // 5 % len(faults)])
            return await super()._handle(request)

    with Shaky() as shaky:
        outcome, judged = run(shaky.url, timeout_s=0.05)
    assert broken(judged) == set(), [one.verdict for one in judged if not one.verdict.ok]
    found = summary.counts(summary.worked(outcome))
    assert found["ok"] and found["refused"] and found["unknown"], found


def test_a_promise_nobody_tested_is_undecided() -> None:
    judged = judge([])
    assert {one.verdict.status for one in judged} == {"unknown"}
    assert overall(judged) == "unknown"


def test_every_workload_is_judged() -> None:
    judged = {name for check in CHECKS for name in check.workloads}
    assert {name.partition("-")[0] for name in judged} == {workload.name for workload in WORKLOADS}


# ── one operation ──────────────────────────────────────────────────────────────────────────────────────────────

ENDINGS: list[tuple[SpineError, bool, str]] = [
    (Unavailable("no leader"), False, "fail"),
    (Unavailable("one of two", details={"indeterminate": True}), False, "unknown"),
    (Unavailable("none", details={"indeterminate": False}), False, "fail"),
    (Unknown("lost"), False, "unknown"),
    (Conflict("newer"), False, "fail"),
    (Conflict("newer"), True, "ok"),
    (PreconditionFailed("exists"), True, "ok"),
    (SpineError("not what the API promises"), False, "unknown"),
]


@pytest.mark.parametrize(("error", "conditional", "outcome"), ENDINGS)
def test_what_a_write_came_to(error: SpineError, conditional: bool, outcome: str) -> None:
    async def fails() -> None:
        raise error

    pending = Recorder(lambda: 1).invoke("p", "x", "write", 1)
    found = asyncio.run(attempt.write(pending, fails(), conditional=conditional))
    assert found.outcome == outcome
    assert found.output == ({"refused": True} if outcome == "ok" else None)


@pytest.mark.parametrize(
    ("confirmed", "local", "outcome"), [(True, False, "ok"), (False, False, "fail"), (False, True, "ok")]
)
def test_absence_counts_once_it_is_confirmed(confirmed: bool, local: bool, outcome: str) -> None:
    async def missing() -> None:
        raise NotFound("no such memory", details={"confirmed": confirmed})

    pending = Recorder(lambda: 1).invoke("p", "x", "read")
    assert asyncio.run(attempt.read(pending, missing(), str, local=local)).outcome == outcome


# ── figures and pages ──────────────────────────────────────────────────────────────────────────────────────────

S = 1_000_000_000


def made(*operations: Operation, seconds: int = 10) -> Outcome:
    sightings = [
        Sighting(0, "n1", "ready"),
        Sighting(0, "n2", "ready"),
        Sighting(0, "n1", "leader", "group 1"),
        Sighting(4 * S, "n1", "down"),
        Sighting(5 * S, "n2", "leader", "group 1"),
        Sighting(7 * S, "n1", "ready"),
    ]
    return Outcome("run", ("n1", "n2"), 0, seconds * S, list(operations), {}, sightings, [])


def strong(second: float, kind: str, value: int, node: str, **more: Any) -> Operation:
    at = int(second * S)
    info = {"path": "strong", "workload": "register"}
    end = None if more.get("outcome") == "unknown" else at + S // 100
    known = {"input": value} if kind == "write" else {"output": value}
    return op(at, end, kind, node=node, info=info, **known, **more)


def test_gaps_are_the_longest_times_without_a_success() -> None:
    outcome = made(
        strong(1, "write", 1, "n1"),
        strong(2, "write", 2, "n2"),
        strong(3, "write", 3, "n1", outcome="fail"),
        strong(4, "write", 4, "n1", outcome="unknown"),
        strong(5, "read", 2, "n1"),
        strong(6, "write", 6, "n2"),
        strong(9, "write", 9, "n1"),
    )
    found = {(gap.path, gap.node): (round(gap.seconds, 1), round(gap.from_ns / S)) for gap in summary.gaps(outcome)}
    assert found["strong", ""] == (4.0, 2)
    assert found["strong", "n1"] == (8.0, 1)
    assert found["strong", "n2"] == (4.0, 2)
    assert found["ring", ""] == (10.0, 0)


def test_percentiles_are_of_what_was_answered() -> None:
    operations = [op(0, n * 1_000_000, "read", None, 1) for n in range(1, 101)]
    operations.append(op(0, 10**12, "read", outcome="fail"))
    assert summary.percentiles_ms(operations) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}
    assert summary.percentiles_ms([]) == {}


class Balanced(HTMLParser):
    """Every element closed in order; what the page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag != "meta":
            self.open.append(tag)
        self.outside += [f"{tag} {n}" for n, _ in attrs if n in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_escapes_what_it_shows_and_loads_nothing() -> None:
    outcome = made(
        strong(1, "write", 1, "n1"),
        strong(2, "write", 2, "n2", process="<script>alert(1)</script>"),
        strong(3, "read", 1, "n1", process="<script>alert(1)</script>"),
        strong(3.5, "write", 7, "n1", outcome="unknown"),
        strong(3.6, "write", 8, "n1", outcome="fail"),
    )
    judged = judge(outcome.history)
    assert "strong reads and writes" in broken(judged)
    text = page(outcome, judged, {"version": "0", "urls": ["http://<b>"], "finished_at": "today"})
    reader = Balanced()
    reader.feed(text)
    assert reader.open == []
    assert reader.outside == []
    assert "<script" not in text and "http://<b>" not in text
    assert "@import" not in text and "url(http" not in text
    for word in ("cannot be explained", "down", "leads 1 more", "s without a write", "✗ broken", "? undecided"):
        assert word in text, word


# ── the command ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_command_writes_its_files_and_says_the_verdict(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "deep" / "report"
    options = ["--seconds", "1.5", "--rate", "600", "--output-dir", str(folder), "--url", server.url]
    assert main(["verify", *options, "--output", "json"], {}) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["verdict"] == "ok"
    assert printed == json.loads((folder / "summary.json").read_text())
    about, history = load((folder / "history.jsonl").read_bytes().splitlines())
    assert about["run"] == printed["run"]
    assert judge(history)[0].verdict.ok
    assert "</html>" in (folder / "report.html").read_text()


def test_a_lie_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Liar("stale register") as server:
        options = ["--seconds", "1.5", "--rate", "600", "--output-dir", str(tmp_path), "--url", server.url]
        assert main(["verify", *options], {}) == 1
    assert "✗ strong reads and writes" in capsys.readouterr().out


def test_nobody_there_is_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    options = ["--seconds", "1", "--timeout", "0.2", "--output-dir", str(tmp_path)]
    urls = f"http://127.0.0.1:{port},http://127.0.0.1:{port}"
    assert main(["verify", *options, "--url", urls], {}) == 4
    assert "answers" in capsys.readouterr().err


def test_a_key_that_may_not_write_is_exit_code_2(tmp_path: Path) -> None:
    class Closed(FakeServer):
        def _dispatch(self, seen: Seen) -> web.Response:
            if seen.method == "PUT":
                return web.json_response({"error": {"code": "forbidden", "message": "no"}}, status=403)
            return super()._dispatch(seen)

    with Closed() as closed:
        assert main(["verify", "--seconds", "1", "--output-dir", str(tmp_path), "--url", closed.url], {}) == 2
