"""The measuring tools: what they count must be right, whatever the machine's speed."""

import base64
import json
import math
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from raftspine.bench import wrk, zookeeper
from raftspine.bench.coordination import ACTS, Coordinated, Requests
from raftspine.bench.etcd import EtcdLocks
from raftspine.bench.histogram import Histogram
from raftspine.bench.keys import DRAWN, SplitMix, sequence
from raftspine.bench.lanes import drive
from raftspine.bench.load import Generator, Outcome, Plan
from raftspine.bench.preload import preload
from raftspine.bench.report import COLUMNS, cells, document, markdown, measure, sentences
from raftspine.bench.suite import LOCK_STEPS, STEPS, Row, Step, Suite
from raftspine.bench.texts import text_of
from raftspine.bench.wire import addresses
from raftspine.bench.workloads import BATCH, MIXES, Shape, Workload
from raftspine.errors import Misuse, SpineError, Unavailable
from raftspine.system import SystemClock
from tests.support.fake_server import FakeServer, Fault, Seen

SMALL = Shape(value_bytes=64, keys=300)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


def run(server: FakeServer, name: str, *, rate: float | None = None, seconds: float = 0.3) -> Outcome:
    workload = Workload(name, SMALL)
    plan = Plan(addresses([server.url]), 4, seconds, 0.0, rate, workload.mix.session)
    return Generator(workload, plan, SystemClock()).run()


def test_percentiles_are_within_one_percent() -> None:
    histogram = Histogram()
    samples = sorted(int(math.exp(SplitMix(n).random() * 15)) for n in range(5000))
    for sample in samples:
        histogram.record(sample)
    for percent in (1, 50, 90, 99, 99.9):
        exact = samples[math.ceil(len(samples) * percent / 100) - 1]
        assert histogram.percentile_us(percent) == pytest.approx(exact, rel=0.01, abs=1)
    assert histogram.percentile_us(100) == samples[-1]
    assert histogram.mean_us() == pytest.approx(sum(samples) / len(samples), rel=0.01)
    other = Histogram()
    other.record(10**9)
    other.merge(histogram)
    assert (other.total, other.highest) == (5001, 10**9)
    assert Histogram().percentile_us(99) == 0
    Histogram().record(-5)


def test_key_sequences_repeat_and_are_skewed_as_asked() -> None:
    assert sequence(1000, "zipfian", 7) == sequence(1000, "zipfian", 7)
    zipfian = Counter(sequence(1000, "zipfian", 7)).most_common()
    uniform = Counter(sequence(1000, "uniform", 7)).most_common()
    expected = DRAWN / sum(1 / (rank + 1) ** 0.99 for rank in range(1000))
    assert zipfian[0][1] == pytest.approx(expected, rel=0.05)
    assert zipfian[0][0] != 0, "the hottest key is anywhere"
    assert uniform[0][1] < DRAWN / 1000 * 2


@pytest.mark.parametrize("name", sorted(MIXES))
def test_each_workload_runs_without_an_error(server: FakeServer, name: str) -> None:
    assert preload([server.url], [name], SMALL) == SMALL.keys
    outcome = run(server, name)
    assert outcome.errors == {} and outcome.unknown == 0
    assert outcome.operations > 0
    if name != "batch":
        assert outcome.operations == outcome.overall().total
    else:
        assert outcome.operations % BATCH == 0
    json.dumps(outcome.document())


def test_the_shares_of_a_mix_are_kept(server: FakeServer) -> None:
    workload = Workload("mixed", SMALL)
    assert workload._kinds.count(0) / DRAWN == pytest.approx(0.9, abs=0.01)


def test_sessions_send_the_token_of_the_last_reply(server: FakeServer) -> None:
    preload([server.url], ["read"], SMALL)
    server.seen.clear()
    run(server, "read")
    first, *later = (seen for seen in server.seen if not seen.path.endswith("batch"))
    assert "X-Spine-Session" not in first.headers and first.method == "PUT"
    reads = [seen for seen in later if seen.method == "GET"]
    assert reads and all(seen.headers["X-Spine-Session"].startswith("token-") for seen in reads)


def test_failures_are_counted_by_kind(server: FakeServer) -> None:
    server.faults.extend(
        [Fault(503, "no_quorum"), Fault(503, "no_quorum"), Fault(504, "outcome_unknown"), Fault(cut=True)]
    )
    outcome = run(server, "write")
    assert outcome.errors == {"503": 2}
    assert outcome.unknown == 2, "a write that was cut off may have happened"
    preload([server.url], ["ycsb-c"], SMALL)
    workload = Workload("ycsb-c", SMALL)
    server.faults.extend([Fault(cut=True)])
    plan = Plan(addresses([server.url]), 2, 0.2, 0.0, None, False)
    read = Generator(workload, plan, SystemClock()).run()
    assert read.errors == {"connection": 1} and read.unknown == 0


def test_failures_inside_a_batch_are_not_operations(server: FakeServer) -> None:
    server.poisoned.update({f"bench-{n:08d}": Fault(503, "no_quorum") for n in range(SMALL.keys)})
    outcome = run(server, "batch")
    assert outcome.operations == 0
    assert outcome.errors["batch"] % BATCH == 0


def test_an_open_loop_sends_what_is_due_and_no_more(server: FakeServer) -> None:
    outcome = run(server, "write", rate=100, seconds=0.5)
    assert outcome.operations + outcome.unknown == 50
    assert outcome.late.total == 50


def test_an_open_loop_charges_a_stall_to_all_who_waited(server: FakeServer) -> None:
    release = threading.Event()
    original = server._answer
    stalled = threading.Event()

    def stall(seen: object) -> object:
        if not stalled.is_set():
            stalled.set()
            release.wait(0.3)  # the stand-in's only thread: nothing is answered meanwhile
        return original(seen)  # type: ignore[arg-type]

    server._answer = stall  # type: ignore[method-assign, assignment]
    outcome = run(server, "write", rate=200, seconds=0.4)
    waited = outcome.overall()
    assert waited.total == 80
    assert waited.percentile_us(50) > 50_000, "most requests were due during the stall"


def test_nobody_there() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    plan = Plan(addresses([f"http://127.0.0.1:{port}"]), 1, 0.1)
    with pytest.raises(Unavailable):
        Generator(Workload("write", SMALL), plan, SystemClock()).run()


def test_names_and_addresses_are_checked() -> None:
    with pytest.raises(Misuse, match="no workload"):
        Workload("nonsense", SMALL)
    with pytest.raises(SpineError, match="plain HTTP"):
        addresses(["https://host"])
    with pytest.raises(Misuse, match="wrk cannot"):
        wrk.run("batch", [], SMALL, clients=1, seconds=1, clock=SystemClock())


WRK = """\
Running 2s test @ http://127.0.0.1:1/
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.39ms    1.30ms  16.41ms   89.79%
    Req/Sec    19.70k     3.56k   29.37k    72.50%
  Latency Distribution
     50%  987.00us
     75%    1.62ms
     90%    2.85ms
     99%    1.01s
  78443 requests in 2.01s, 52.37MB read
  Socket errors: connect 0, read 3, write 0, timeout 2
  Non-2xx or 3xx responses: 43
Requests/sec:  39049.21
Transfer/sec:     26.07MB
"""


def test_a_report_of_wrk_is_understood() -> None:
    found = wrk.parse(WRK)
    assert found["per_second"] == 39049.21
    assert found["operations"] == 78443 - 43
    assert found["errors"] == {"status": 43, "read": 3, "timeout": 2}
    assert found["latency_ms"] == {"p50": 0.987, "p75": 1.62, "p90": 2.85, "p99": 1010.0}
    with pytest.raises(SpineError):
        wrk.parse("unable to connect")


def row(store: str, workload: str, per_second: float, p99: float = 1.0, **step: object) -> Row:
    found = {
        "per_second": per_second,
        "operations": 10,
        "errors": {},
        "unknown": 0,
        "latency_ms": {"p50": 0.5, "p99": p99},
        "generator_cpu": 0.1,
    }
    return Row(store, Step(workload, "always", **step), "own", found, 20.0, 1.5)  # type: ignore[arg-type]


def test_rows_are_measured_against_bar_and_peer() -> None:
    rows = [
        row("raftspine", "strong-write", 9000, peers=("etcd-put",)),
        row("raftspine", "write", 30_000, bar=15_000),
        row("raftspine", "mixed", 15_000, p99=13, rate=15_000, bar=12.0),
        row("etcd", "etcd-put", 6000),
    ]
    assert [measure(r, rows) for r in rows] == ["1.50 × etcd", "2.00 × 15,000", "p99 not under 12 ms", ""]
    assert measure(rows[0], rows[:1]) == "etcd-put not measured"
    page = markdown(rows, [{"cpu": 0.01, "rss_mb": 90}], {"cpu": "a chip"}, SMALL, 64)
    assert page.count("\n| ") >= 6 and "1.50 × etcd" in page and "1.0% of a core" in page
    assert document(rows, [], {}, SMALL, 64)["results"][0]["measure"] == "1.50 × etcd"


def test_a_peer_that_is_missing_is_shown_as_skipped() -> None:
    skipped = Row("zookeeper", Step("zookeeper-lock", "always"), "-", {}, skipped="kazoo not installed")
    ours = row("raftspine", "lock", 3000, peers=("etcd-lock", "zookeeper-lock"))
    verify = row("raftspine", "gate-verify", 900, peers=("strong-read",))
    rows = [ours, skipped, row("etcd", "etcd-lock", 1500), verify, row("raftspine", "strong-read", 1000)]
    assert measure(ours, rows) == "2.00 × etcd, zookeeper-lock not measured"
    assert measure(verify, rows) == "0.90 × linearizable read"
    assert len(cells(skipped, rows)) == len(COLUMNS) and cells(skipped, rows)[-1] == "skipped: kazoo not installed"
    assert document(rows, [], {}, SMALL, 64)["results"][1]["measure"] == "skipped: kazoo not installed"


class Scripted:
    """A stand-in node that answers coordination from a table of paths, and keeps what it was asked."""

    def __init__(self, server: FakeServer) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self._given = 0
        server._answer = self._answer  # type: ignore[method-assign]

    def _answer(self, seen: Seen) -> web.Response:
        self.asked.append((seen.method, seen.path, seen.body))
        self._given += 1
        last = seen.path.rsplit("/", 1)[1]
        told: dict[str, Any] = {"id": f"i{self._given}", "lease_id": f"l{self._given}", "fencing_token": self._given}
        if last == "claim":
            told = {"tasks": [{"id": f"i{self._given}", "claim_token": self._given}]}
        return web.json_response(told, status=201 if last == "requests" else 200)


ROUNDS: dict[str, tuple[list[str], list[str]]] = {
    "lock": ([], ["locks/bench-lock-0/acquire", "locks/bench-lock-0/release"]),
    "lock-one": ([], ["locks/bench-lock/acquire", "locks/bench-lock/release"]),
    "renew": (["locks/bench-renew-0/acquire"], ["locks/bench-renew-0/renew"]),
    "gate-verify": (
        ["gates/bench-gate-0", "gates/bench-gate-0/requests", "gates/bench-gate-0/requests/i2/admit"],
        ["gates/bench-gate-0/requests/i2/verify"],
    ),
    "gate-pass": (["gates/bench-pass-0"], ["gates/bench-pass-0/pass"]),
    "task": ([], ["tasks/bench-0", "tasks/bench-0/claim", "tasks/bench-0/ID/complete"]),
}
"""What a client asks once, and then again and again."""


@pytest.mark.parametrize("name", sorted(ACTS))
def test_each_operation_of_coordination_asks_in_its_order(server: FakeServer, name: str) -> None:
    script = Scripted(server)
    outcome = Generator(
        Coordinated(name), Plan(addresses([server.url]), 1, 0.2, 0.0, None, True), SystemClock()
    ).run()
    assert outcome.errors == {} and outcome.unknown == 0 and outcome.operations == outcome.overall().total > 0
    prepared, repeated = ROUNDS[name]
    paths = [re.sub(r"i\d+/complete", "ID/complete", path.removeprefix("/v1/")) for _, path, _ in script.asked]
    assert paths[: len(prepared)] == prepared
    again = paths[len(prepared) :]
    assert again == (repeated * len(again))[: len(again)] and len(again) >= outcome.operations * len(repeated)
    tokens = [body.get("fencing_token", body.get("claim_token")) for _, _, body in script.asked]
    made = [n for n, token in enumerate(tokens) if token is not None]
    if name in ("renew", "gate-verify"):
        assert {tokens[n] for n in made} == {len(prepared)}, "what was given in the beginning is used throughout"
    elif name != "gate-pass":
        assert made and all(tokens[n] == n for n in made), "each token is that of the reply before"


def test_a_reply_without_a_token_is_no_operation(server: FakeServer) -> None:
    server._answer = lambda seen: web.json_response({})  # type: ignore[method-assign]
    with pytest.raises(SpineError, match="the reply has no"):
        Generator(Coordinated("lock"), Plan(addresses([server.url]), 1, 0.2, 0.0, None, True), SystemClock()).run()
    with pytest.raises(Misuse, match="no workload"):
        Coordinated("nonsense")


class Member:
    """A connection as far as a workload knows it."""

    def __init__(self, number: int, body: bytes) -> None:
        self.number, self.body, self.kind, self.session = number, body, 0, b""
        self.follow: Any = None


@pytest.mark.parametrize(("one_name", "name"), [(True, b"bench-lock"), (False, b"bench-lock-7")])
def test_etcd_locks_under_a_lease_and_unlocks_the_key_it_was_given(one_name: bool, name: bytes) -> None:
    workload, member = EtcdLocks(one_name=one_name), Member(7, b"")
    assert workload.first(member).startswith(b"POST /v3/lease/grant HTTP/1.1\r\n")  # type: ignore[arg-type]
    member.body = b'{"header":{"revision":"1"},"ID":"123","TTL":"300"}'
    for _ in range(2):
        head, _, body = workload.next(member).partition(b"\r\n\r\n")  # type: ignore[arg-type]
        assert head.startswith(b"POST /v3/lock/lock ") and json.loads(body)["lease"] == "123"
        assert base64.b64decode(json.loads(body)["name"]) == name
        member.body = b'{"header":{"revision":"2"},"key":"YS82"}'
        assert member.follow(member).endswith(b'{"key":"YS82"}')


def test_a_list_of_requests_is_sent_once_each_over_all_lanes(server: FakeServer) -> None:
    ask = Requests()
    requests = [ask.post(f"memories/bench-{n}", {"content": "x"}, "PUT") for n in range(50)]
    latency = drive(addresses([server.url]), requests, 7, SystemClock())
    assert latency.total == 50 and len(server.memories) == 50
    server.faults.append(Fault(503, "no_quorum"))
    with pytest.raises(SpineError, match="answered 503"):
        drive(addresses([server.url]), requests, 1, SystemClock())


def test_parts_are_chosen_by_name_and_counted_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrk, "available", lambda: False)

    def suite(*parts: str) -> Suite:
        return Suite(tmp_path, SystemClock(), say=print, step=print, pause=print, parts=parts)

    assert suite("growth").total() == 1 and suite("handover", "watch").total() == 2
    assert suite("memories").total() == len(STEPS) + 2
    assert suite("locks").total() == 1 + len(LOCK_STEPS) + 4, "a linearizable read beside them"
    assert suite("locks", "memories").total() == len(STEPS) + len(LOCK_STEPS) + 6
    with pytest.raises(Misuse, match="no part"):
        suite("nonsense")
    assert all(text_of(peer) for step in (*STEPS, *LOCK_STEPS) for peer in (step.workload, *step.peers))


FACTS: dict[str, dict[str, Any]] = {
    "handover": {
        "rounds": 9,
        "lag_round_trips": 0.5,
        **{key: {"p50": 1.0, "p99": 2.0} for key in ("release", "granted", "lag", "round_trip")},
    },
    "watch": {
        "watchers": 1000,
        "encodings_per_event": 1.0,
        "per_second": 9,
        "cpu_us_per_delivery": 9.5,
        "cpu_us_per_event": 9,
    },
    "growth": {
        "few": {"held": 100, "p50_ms": 1.0, "p99_ms": 2.0, "cpu_us": 100.0, "rss_mb": 50.0},
        "many": {"held": 100_000, "waiting": 10_000, "p50_ms": 1.5, "p99_ms": 3.0, "cpu_us": 130.0, "rss_mb": 222.0},
        "ratio": {"p50_ms": 1.5, "p99_ms": 1.5, "cpu_us": 1.3},
    },
}


def test_what_is_no_row_is_a_sentence() -> None:
    page = markdown([row("raftspine", "write", 9)], [], {}, SMALL, 64, FACTS)
    for said in ("0.50 round trips", "1 encodings per event", "p50 1.50 ×, p99 1.50 ×, cpu 1.30 ×", "222 MB"):
        assert said in page
    assert document([], [], {}, SMALL, 64, FACTS)["growth"]["many"]["waiting"] == 10_000
    assert sentences({}) == []


def test_zookeeper_is_three_servers_that_sync(tmp_path: Path) -> None:
    cluster = zookeeper.ZooKeeperCluster(tmp_path, lambda seconds: None)
    commands = cluster.commands()
    assert len(commands) == len(cluster.hosts) == 3
    for n, command in enumerate(commands):
        lines = (tmp_path / f"{n}.cfg").read_text().splitlines()
        assert command[-1] == str(tmp_path / f"{n}.cfg") and "forceSync=yes" in lines
        assert sum(line.startswith("server.") for line in lines) == 3
        assert (tmp_path / str(n) / "myid").read_text() == f"{n + 1}\n"
    assert not cluster.healthy(), "nobody was started"
