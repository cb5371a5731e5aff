"""The measuring tools: what they count must be right, whatever the machine's speed."""

import json
import math
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing

import pytest

from raftspine.bench import wrk
from raftspine.bench.histogram import Histogram
from raftspine.bench.keys import DRAWN, SplitMix, sequence
from raftspine.bench.load import Generator, Outcome, Plan
from raftspine.bench.preload import preload
from raftspine.bench.report import document, markdown, measure
from raftspine.bench.suite import Row, Step
from raftspine.bench.wire import addresses
from raftspine.bench.workloads import BATCH, MIXES, Shape, Workload
from raftspine.errors import Misuse, SpineError, Unavailable
from raftspine.system import SystemClock
from tests.support.fake_server import FakeServer, Fault

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
        row("raftspine", "strong-write", 9000, peer="etcd-put"),
        row("raftspine", "write", 30_000, bar=15_000),
        row("raftspine", "mixed", 15_000, p99=13, rate=15_000, bar=12.0),
        row("etcd", "etcd-put", 6000),
    ]
    assert [measure(r, rows) for r in rows] == ["1.50 × etcd", "2.00 × 15,000", "p99 not under 12 ms", ""]
    assert measure(rows[0], rows[:1]) == "etcd not measured"
    page = markdown(rows, [{"cpu": 0.01, "rss_mb": 90}], {"cpu": "a chip"}, SMALL, 64)
    assert page.count("\n| ") >= 6 and "1.50 × etcd" in page and "1.0% of a core" in page
    assert document(rows, [], {}, SMALL, 64)["results"][0]["measure"] == "1.50 × etcd"
