"""The table of the engine's defects as tests: how a half of one is marked, found and written down.

Each row of the table has parts, each part two halves: `bare` shows the damage on the unmodified package and
turns red when an upgrade repairs it; `ours` plays the same scenario against this project and shows that
nothing is lost. A half without the other proves nothing, and a document beside the tests would drift from
them; so the marks carry the words, and docs/engine-defects.md is made from them::

    python -m tests.support.defects > docs/engine-defects.md

The tests appear under names that read as that table:
``row-01-repeated-append[bare: cuts entries it acknowledged]``.
"""

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

FOLDER: Final = Path(__file__).parent.parent / "defects"
DOCUMENT: Final = FOLDER.parent.parent / "docs" / "engine-defects.md"

ROWS: Final[dict[int, str]] = {
    1: "A follower cuts its log where nothing conflicts",
    2: "Membership changes overtake each other",
    3: "A snapshot that failed to load is acknowledged",
    4: "Acknowledgements carry no term",
    5: "The commit index passes a tail nobody compared",
    6: "A vote counts as often as it arrives",
    7: "Term, vote and commit index do not survive with the log",
    8: "Compaction loses what is not yet in the snapshot",
    9: "The journal promises what its file does not keep",
    10: "Exceptions are tried again",
    11: "A command of a newer version shifts the count of applied entries",
    12: "Callers are told the wrong thing, or nothing",
    13: "A leader does not notice that it is none",
    14: "Whatever arrives is unpickled",
    15: "Large entries are cut by the wrong length",
    16: "Replication waits for the heartbeat",
    17: "A follower that needs a snapshot",
    18: "Members after restarts and removals",
    19: "A run cannot be repeated",
}


class Half(NamedTuple):
    """One half of one part. `says`: what this side does, in a few words; `closed_in`: dotted names below
    `raftspine.` (empty for the bare half)."""

    row: int
    part: str
    side: str
    says: str
    closed_in: tuple[str, ...] = ()

    @property
    def test_id(self) -> str:
        return f"row-{self.row:02d}-{self.part.replace(' ', '-')}[{self.side}: {self.says}]"


Test = Callable[..., None]

# The package leaves its files to the garbage collector, which says so.
_UNCLOSED: Final = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")


def bare(row: int, part: str, says: str) -> Callable[[Test], Test]:
    """Marks the half that plays against the package as shipped."""
    return _mark(Half(row, part, "bare", says), _UNCLOSED)


def ours(row: int, part: str, says: str, *closed_in: str) -> Callable[[Test], Test]:
    """Marks the half that plays against this project; `closed_in` names what keeps the defect out."""
    return _mark(Half(row, part, "ours", says, closed_in))


def _mark(half: Half, *marks: pytest.MarkDecorator) -> Callable[[Test], Test]:
    def marked(test: Test) -> Test:
        test.half = half  # type: ignore[attr-defined]
        for mark in marks:
            test = mark(test)
        return test

    return marked


class Entry(NamedTuple):
    """A half and the test that plays it."""

    half: Half
    file: str
    function: str
    story: str


def entries() -> list[Entry]:
    """All halves in the folder, by row, in the order of the files; read, not run."""
    found: list[Entry] = []
    for file in sorted(FOLDER.glob("test_row_*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                found += [Entry(half, file.name, node.name, _story(node)) for half in _halves(node)]
    return sorted(found, key=lambda entry: entry.half.row)


def _halves(function: ast.FunctionDef) -> Iterator[Half]:
    for call in function.decorator_list:
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in ("bare", "ours"):
            row, part, says, *closed_in = [ast.literal_eval(argument) for argument in call.args]
            yield Half(row, part, call.func.id, says, tuple(closed_in))


def _story(function: ast.FunctionDef) -> str:
    return " ".join((ast.get_docstring(function) or "").split())


def resolve(name: str) -> Any:
    """What a dotted name below ``raftspine.`` stands for. AttributeError or ImportError when there is none."""
    path = ["raftspine", *name.split(".")]
    for end in range(len(path), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(path[:end]))
        except ModuleNotFoundError:
            continue
        for step in path[end:]:
            found = getattr(found, step)
        return found
    raise ImportError(name)


HEADING: Final = """\
# What PySyncObj does as shipped, and what stands against it

Made by `python -m tests.support.defects` from the tests in `tests/defects`; a test compares the two, so edit the
tests.

Raftspine counts votes and decides commits with PySyncObj 0.3.17. As shipped the package must not carry a lock: each
part below is a scenario that does damage on the unmodified package (*bare*) and none here (*ours*), and both halves
are run. When a new version of the package turns a bare half red, the defect has been repaired there: read its story
again before the guard that stands against it is taken away.

    PYTHONHASHSEED=0 .venv/bin/python -m pytest tests/defects -v
"""

_COLUMNS: Final = ["| part | as shipped | here | kept out by | tests |", "|---|---|---|---|---|"]


def document() -> str:
    """docs/engine-defects.md."""
    found = entries()
    lines = [HEADING]
    for row, title in ROWS.items():
        lines += [f"## {row}. {title}", "", *_COLUMNS]
        parts: dict[str, list[Entry]] = {}
        for entry in found:
            if entry.half.row == row:
                parts.setdefault(entry.half.part, []).append(entry)
        lines += [_line(halves) for halves in parts.values()] + [""]
    return "\n".join(lines)


def _line(halves: list[Entry]) -> str:
    sides = {side: [entry for entry in halves if entry.half.side == side] for side in ("bare", "ours")}
    said = [" ".join(f"*{entry.half.says}.* {entry.story}" for entry in sides[side]) for side in ("bare", "ours")]
    closed = ", ".join(f"`{name}`" for entry in sides["ours"] for name in entry.half.closed_in)
    tests = ", ".join(f"`{entry.function}`" for entry in halves)
    return f"| {halves[0].half.part} | {said[0]} | {said[1]} | {closed} | {halves[0].file}: {tests} |"


if __name__ == "__main__":
    print(document(), end="")
