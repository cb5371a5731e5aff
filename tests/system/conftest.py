"""The fault laboratory as a fixture: three nodes on hosts of their own, shared by the tests of one module."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.lab.nodes import TOOLS, Lab, Tools
from tests.support.processes import Processes
from tests.support.tools import missing, need, need_namespaces


@pytest.fixture(scope="module")
def lab_tools() -> Tools:
    """What the laboratory is built with; skips, or in CI fails, where it cannot be."""
    need_namespaces()
    for tool in TOOLS.values():
        need(tool.program, tool.package)
    found = Tools.find()
    if isinstance(found, str):
        missing(found)
    return found


@pytest.fixture(scope="module")
def lab(lab_tools: Tools, module_processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Three nodes, ready. The test thread is on the clients' host meanwhile."""
    folder: Path = tmp_path_factory.mktemp("lab")
    with Lab(lab_tools, module_processes, folder) as made:
        made.start()
        yield made
