"""The package's front door: what it offers, and that it costs nothing until it is used."""

import subprocess
import sys

import raftspine
from raftspine import client, errors


def test_every_name_is_there_and_comes_from_one_place() -> None:
    for name in raftspine.__all__:
        found = getattr(raftspine, name)
        assert found is getattr(client, name, None) or found is getattr(errors, name, None) or name == "__version__"
    assert set(raftspine.__all__) <= set(dir(raftspine))
    assert not hasattr(raftspine, "Nonsense")


def test_every_error_of_the_tree_is_offered() -> None:
    tree = {name for name, found in vars(errors).items() if isinstance(found, type)} - {"Any", "Mapping"}
    assert tree <= set(raftspine.__all__)


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import raftspine, sys; print([m for m in sys.modules if m.split('.')[0] in ('aiohttp','msgspec','rich')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_serving_a_node_does_not_import_the_tables_of_the_other_commands() -> None:
    code = "import raftspine.cli, sys; print([m for m in sys.modules if m.split('.')[0] in ('aiohttp','rich')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
