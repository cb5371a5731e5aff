"""The laboratory's own judges: each accepts what is allowed and finds what is not."""

from pathlib import Path
from typing import Any

import pytest

from raftspine.checkers.history import Operation
from tests.support.lab.failover import percentile
from tests.support.lab.judge import Logs, counted, own_writes_read
from tests.support.lab.load import RING, STRONG
from tests.support.lab.window import longest_gaps


def history(*calls: tuple[Any, ...]) -> list[Operation]:
    """Calls one after the other: (kind, value, outcome)."""
    found = []
    for at, (kind, value, outcome) in enumerate(calls):
        read = kind == "read"
        found.append(
            Operation(
                process="s",
                key="k",
                kind=kind,
                input=None if read else value,
                output=value if read else None,
                invoked_at=2 * at,
                completed_at=2 * at + 1,
                outcome=outcome,
                session="s",
                info={"path": RING},
            )
        )
    return found


@pytest.mark.parametrize(
    ("calls", "fits"),
    [
        ([("read", None, "ok")], True),
        ([("write", 1, "ok"), ("read", 1, "ok")], True),
        ([("write", 1, "ok"), ("read", None, "ok")], False),
        ([("write", 1, "ok"), ("write", 2, "ok"), ("read", 1, "ok")], False),
        ([("write", 1, "ok"), ("write", 2, "unknown"), ("read", 1, "ok"), ("read", 2, "ok")], True),
        ([("write", 1, "unknown"), ("write", 2, "ok"), ("read", 1, "ok")], True),
        ([("write", 1, "fail"), ("read", 1, "ok")], False),
        ([("write", 1, "ok"), ("delete", None, "ok"), ("read", 1, "ok")], False),
        ([("write", 1, "ok"), ("delete", None, "ok"), ("read", None, "ok")], True),
        ([("write", 1, "ok"), ("read", None, "fail")], True),
    ],
)
def test_sessions_read_their_writes(calls: list[tuple[Any, ...]], fits: bool) -> None:
    assert own_writes_read(history(*calls)).ok == fits


def increments(*outcomes: str, total: int) -> list[Operation]:
    made = [
        Operation(
            process="c",
            key="k",
            kind="cas",
            input={"expected": None, "value": 1},
            output={"refused": False},
            invoked_at=at,
            completed_at=at,
            outcome=outcome,
            info={"path": STRONG},
        )
        for at, outcome in enumerate(outcomes)
    ]
    last = Operation(
        process="judge-n1",
        key="k",
        kind="read",
        output={"value": total},
        invoked_at=99,
        completed_at=99,
        outcome="ok",
    )
    return [*made, last]


def test_increments_are_neither_lost_nor_doubled() -> None:
    assert counted(increments("ok", "ok", "unknown", "fail", total=2)).ok
    assert counted(increments("ok", "ok", "unknown", "fail", total=3)).ok
    assert not counted(increments("ok", "ok", "unknown", "fail", total=1)).ok
    assert not counted(increments("ok", "ok", "unknown", "fail", total=4)).ok


def test_a_log_line_is_judged_once_and_a_refusing_disk_excused_where_it_was_made_to(tmp_path: Path) -> None:
    log, logs = tmp_path / "n1.log", Logs()
    log.write_text('{"event": "serving", "level": "info"}\n')
    assert logs.judge([log]).ok
    with log.open("a") as file:
        file.write('{"event": "the Raft journal cannot be written; …", "level": "error"}\n')
    assert logs.judge([log], breaks_disk=True).ok
    assert logs.judge([log]).judged == 0
    with log.open("a") as file:
        file.write("Traceback (most recent call last):\n")
    assert not logs.judge([log], breaks_disk=True).ok
    assert not Logs().judge([log]).ok


def test_percentiles_are_measured_values() -> None:
    values = [float(n) for n in range(1, 51)]
    assert (percentile(values, 0.5), percentile(values, 0.9), percentile(values, 0.99)) == (25, 45, 50)
    assert percentile([3.0], 0.5) == percentile([3.0], 0.99) == 3


def test_the_longest_gap_counts_from_the_fault_to_the_first_success() -> None:
    second = 10**9
    operations = [
        Operation(
            process="c",
            key="k",
            kind="write",
            invoked_at=0,
            completed_at=at * second,
            outcome="ok",
            info={"path": STRONG},
        )
        for at in (1, 5, 6, 7)
    ]
    assert longest_gaps(operations, 2 * second)[STRONG] == 3
