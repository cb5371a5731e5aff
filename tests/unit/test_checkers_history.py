"""Histories: recording, and reading back what was written."""

from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from raftspine.checkers.history import Operation, Recorder, dump, load
from raftspine.errors import Misuse


def test_a_recorder_keeps_what_each_caller_knew() -> None:
    ticks = count(1)
    finished: list[Operation] = []
    recorder = Recorder(lambda: next(ticks), finished.append)
    write = recorder.invoke("a", "x", "write", 1, node="spine-1", path="strong")
    read = recorder.invoke("b", "x", "read", session="s")
    recorder.invoke("c", "x", "write", 2)
    read.ok(1, node="spine-2", version="v1")
    write.unknown(error="no_answer")
    assert recorder.operations() == [
        Operation(
            process="a",
            key="x",
            kind="write",
            input=1,
            invoked_at=1,
            completed_at=5,
            node="spine-1",
            info={"path": "strong", "error": "no_answer"},
        ),
        Operation(
            process="b",
            key="x",
            kind="read",
            output=1,
            invoked_at=2,
            completed_at=4,
            outcome="ok",
            node="spine-2",
            session="s",
            info={"version": "v1"},
        ),
        Operation(process="c", key="x", kind="write", input=2, invoked_at=3),
    ]
    assert [op.process for op in finished] == ["b", "a"]
    with pytest.raises(RuntimeError, match="already complete"):
        write.fail()


def test_threads_lose_no_operation() -> None:
    ticks = count(1)
    recorder = Recorder(lambda: next(ticks))

    def work(process: int) -> None:
        for n in range(200):
            recorder.invoke(f"p{process}", "x", "write", n).ok()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert len(recorder) == 1600
    assert all(op.ok for op in recorder.operations())


def test_a_history_survives_the_file() -> None:
    ticks = count(1)
    recorder = Recorder(lambda: next(ticks))
    recorder.invoke("a", "x", "write", {"deep": [1, None, "é"]}).ok()
    recorder.invoke("b", "x", "read").fail(error="no_quorum")
    recorder.invoke("c", "y", "txn", [["append", "y", 1]])
    lines = list(dump(recorder.operations(), {"run": "r1"}))
    assert all(line.endswith(b"\n") for line in lines)
    assert load([*lines, b"\n"]) == ({"run": "r1"}, recorder.operations())


HEAD = b'{"raftspine_history":1}\n'


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty"),
        ([b'{"process":"a"}\n'], "line 1: not the head"),
        ([b'{"raftspine_history":9}\n'], "line 1: format 9"),
        ([HEAD, b"{\n"], "line 2: not an operation"),
        ([HEAD, b'{"process":"a","key":"x"}\n'], "line 2: not an operation: .*missing required field"),
        (
            [HEAD, b"\n", b'{"process":"a","key":"x","kind":"w","invoked_at":1,"outcome":"ok"}'],
            "line 3: .*never completed",
        ),
        ([HEAD, b'{"process":"a","key":"x","kind":"w","invoked_at":5,"completed_at":4}'], "line 2: .*before"),
        ([HEAD, b'{"process":"a","key":"x","kind":"w","invoked_at":5,"outcome":"good"}'], "line 2: .*outcome"),
    ],
)
def test_a_bad_line_is_named(lines: list[bytes], message: str) -> None:
    with pytest.raises(Misuse, match=message):
        load(lines, "h.jsonl")
