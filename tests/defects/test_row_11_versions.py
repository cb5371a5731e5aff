"""A node that meets a command it is too old for must stop, not count on."""

import msgspec
import pytest

from raftspine.cluster import raft_envelope
from raftspine.cluster.raft_engine import REGULAR
from tests.support.bare_engine import BareNet, core
from tests.support.bare_engine import bare as package
from tests.support.defects import bare, ours
from tests.support.raft_puppet import entry
from tests.support.raft_scenes import play


@bare(11, "newer code version", "applies later entries twice")
def test_bare_newer_code_version(net: BareNet) -> None:
    """The entry that switches versions is skipped without being counted as applied, so the next round starts one
    entry too early, and so do all after it."""
    a, *_ = net.lead()
    a.engine._applyCommand(package.pickle.dumps(7), None, core._COMMAND_TYPE.VERSION)
    a.put("p")
    a.put("q")
    net.settle(rounds=8)
    assert a.data.count("q") > 1


@ours(11, "newer code version", "halts before it and names the version", "cluster.raft_envelope.unpack")
def test_ours_newer_code_version() -> None:
    """The version of an entry is ours and comes first in it."""

    async def scene(puppet):
        newer = REGULAR + msgspec.msgpack.encode((raft_envelope.VERSION + 1, 1, [b"?"]))
        await puppet.feed("b", 1, 0, 0, 2, entry(1), entry(1, "p"))
        await puppet.hear("b", 3, 1, 2, 1, 4, [[1, newer], entry(1, "q")])
        assert puppet.engine.applied == 2
        assert puppet.machine.state(0).lists["k"] == ["p"]
        assert "upgrade" in puppet.group.status(None).reason
        for _ in range(5):
            await puppet.turn(beat=True)
        assert puppet.machine.state(0).lists["k"] == ["p"]

    play(scene)


@ours(11, "newer code version", "tells its version from its content", "cluster.raft_envelope.pack")
def test_ours_envelope_has_a_version() -> None:
    """Nothing but a known version and a whole entry is unpacked."""
    assert raft_envelope.unpack(raft_envelope.pack(5, [b"x"])) == (5, [b"x"])
    for payload in (b"", b"\x93\x01", msgspec.msgpack.encode((99, 1, [])), msgspec.msgpack.encode([1, "x", []])):
        with pytest.raises(ValueError, match=r"version|form"):
            raft_envelope.unpack(payload)
