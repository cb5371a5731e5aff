"""Collects the halves of the defect table under names that read as that table, and gives each bare half its
network."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bare_engine import BareNet
from tests.support.defects import Half


def pytest_pycollect_makeitem(collector: pytest.Module, name: str, obj: object) -> pytest.Item | None:
    half = getattr(obj, "half", None)
    if not isinstance(half, Half):
        return None
    return pytest.Function.from_parent(collector, name=half.test_id, callobj=obj)


@pytest.fixture
def net() -> Iterator[BareNet]:
    """A network of bare nodes without disks."""
    made = BareNet()
    yield made
    made.close()


@pytest.fixture
def disk_net(tmp_path: Path) -> Iterator[BareNet]:
    """The same with a journal file per node."""
    made = BareNet(tmp_path)
    yield made
    made.close()
