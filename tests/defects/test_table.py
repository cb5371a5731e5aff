"""The table is whole: every row has both halves, every name in it exists, and the document is what the tests say."""

import pytest

from tests.support import defects
from tests.support.defects import DOCUMENT, ROWS, Entry, document, entries, resolve

ENTRIES = entries()


@pytest.mark.parametrize("row", ROWS)
def test_every_row_is_shown_on_both_sides(row: int) -> None:
    halves = [entry.half for entry in ENTRIES if entry.half.row == row]
    parts = {half.part for half in halves}
    assert parts
    for part in parts:
        assert {half.side for half in halves if half.part == part} == {"bare", "ours"}, part


def test_there_are_nineteen_rows_and_no_half_outside_of_them() -> None:
    assert sorted(ROWS) == list(range(1, 20))
    assert {entry.half.row for entry in ENTRIES} == set(ROWS)
    names = [entry.half.test_id for entry in ENTRIES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.function)
def test_every_half_tells_its_story_and_names_what_exists(entry: Entry) -> None:
    half = entry.half
    assert entry.story, "the docstring is its line in the document"
    assert entry.file.startswith(f"test_row_{half.row:02d}_")
    assert entry.function.startswith(f"test_{half.side}_")
    assert bool(half.closed_in) == (half.side == "ours")
    for name in half.closed_in:
        assert resolve(name) is not None


def test_a_name_that_does_not_exist_is_noticed() -> None:
    for name in ("cluster.raft_guard.Guard._gone", "cluster.raft_gone", "gone"):
        with pytest.raises((AttributeError, ImportError)):
            resolve(name)


def test_the_document_is_made_from_the_tests() -> None:
    assert DOCUMENT.read_text() == document(), f"run: python -m {defects.__name__} > {DOCUMENT.name}"
