"""What a journal gives back after a crash is what was promised from it, or a refusal."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from raftspine.cluster.raft_types import RaftTiming
from raftspine.errors import Corrupt, NoSpace, Unknown
from raftspine.sim.disk import SimDisk
from raftspine.sim.loop import Dice, run
from raftspine.storage.journal import Journal
from raftspine.storage.wal import Wal
from tests.support.bare_engine import BareNet, journals, on_disk, write_entries
from tests.support.defects import bare, ours
from tests.support.raft_cluster import command
from tests.support.raft_puppet import GROUP
from tests.support.raft_scenes import others, outcome, with_cluster
from tests.support.tools import missing, need


@bare(9, "never synced", "acknowledges what only the page cache has")
def test_bare_never_synced(disk_net: BareNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries, votes and the answers to both leave without one sync of any file."""
    syncs: list[str] = []
    for name in ("fsync", "fdatasync", "sync", "msync"):
        monkeypatch.setattr(os, name, lambda *ignored, name=name: syncs.append(name), raising=False)
    monkeypatch.setattr(journals.ResizableFile, "flush", lambda self: syncs.append("flush"))
    a, *_ = disk_net.lead()
    answers = a.put_all("x", 20)
    disk_net.settle(rounds=30)
    assert all(answer.acknowledged for answer in answers)
    assert syncs == []


@ours(9, "never synced", "survives the power loss of all nodes", "cluster.raft_outbox.Outbox.release")
def test_ours_never_synced() -> None:
    """Nothing is acknowledged before it is on the disks of a majority: power fails everywhere in the moment of the
    acknowledgement, and the node that gave it stays down."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        followers = others(cluster, leader)
        for node in followers:
            node.disk.sync_seconds = (0.3, 0.6)
        for number in range(5):
            await leader.host.propose(GROUP, command(f"r{number}", "append", "k", number))
        for node in cluster.nodes.values():
            node.crash(power=True)
        for node in followers:
            node.start()
        await cluster.until(cluster.leader)
        survivor = cluster.leader()
        index = await survivor.host.read_index(GROUP)
        await survivor.host.wait_applied(GROUP, index)
        assert survivor.machine.state(0).lists["k"] == list(range(5))

    with_cluster(scene, timing=RaftTiming(check_quorum_ms=5000))


@bare(9, "no checksums", "reads garbage as an entry")
def test_bare_no_checksums(tmp_path: Path) -> None:
    """A flipped byte is part of the command from then on."""
    file = tmp_path / "j"
    write_entries(file, 50, b"put x = 1")._destroy()
    data = bytearray(file.read_bytes())
    at = data.index(b"put x = 1", len(data) // 4)
    data[at + 8] ^= 0x08
    file.write_bytes(data)
    commands = [command for command, _, _ in on_disk(file)]
    assert len(commands) == 50 and commands.count(b"put x = 9") == 1


@ours(9, "no checksums", "refuses with file, offset and remedy", "storage.segment.judge")
def test_ours_no_checksums() -> None:
    """Every record has a checksum and its number; damage that is not a torn tail stops the start."""

    async def main(loop):
        disk = SimDisk(loop, Dice(1))
        journal = Journal.open(Wal.open(disk.directory("raft"), segment_bytes=1 << 20))
        log = journal.create(GROUP, ())
        for number in range(1, 50):
            log.append(b"put x = 1", number, 1)
            await journal.commit()
        [name] = disk.directory("raft").names()
        for offset in range(100, disk.size() - 200, 211):
            disk.damage("raft", name, offset)
            with pytest.raises(Corrupt, match=r"offset \d+: .*docs/operations.md") as caught:
                Wal.open(disk.directory("raft"), segment_bytes=1 << 20)
            assert caught.value.details["file"] == name
            disk.damage("raft", name, offset)  # the same bits back
        assert Journal.open(Wal.open(disk.directory("raft"), segment_bytes=1 << 20)).group(GROUP).last == 49

    run(main)


@bare(9, "file of 4 GiB", "holds in memory what its file refused")
def test_bare_file_of_4_gib(tmp_path: Path) -> None:
    """Offsets are 32 bits wide. Beyond them an entry is added to the list in memory, and then the write fails."""
    journal = write_entries(tmp_path / "j", 1)
    file = journal._FileJournal__journalFile
    write, file.write = file.write, lambda offset, data: None if offset > 1 << 20 else write(offset, data)
    journal._FileJournal__currentOffset = 2**32 - 10
    with pytest.raises(Exception, match="requires 0 <= number <= 4294967295"):
        journal.add(b"b" * 100, 2, 1)
    assert len(journal) == 2, "and in this process it counts as stored"
    journal._destroy()
    assert len(on_disk(tmp_path / "j")) == 1


@ours(9, "file of 4 GiB", "has 64-bit positions in bounded files", "storage.wal.Wal")
def test_ours_file_of_4_gib() -> None:
    """The log is a row of segments; positions are eight bytes wide, and no offset leaves its segment."""

    async def main(loop):
        disk = SimDisk(loop, Dice(1))
        wal = Wal.open(disk.directory("raft"), segment_bytes=4096)
        wal.restart(2**32 - 3)
        for number in range(50):
            wal.append(b"x" * 500 + b"%d" % number)
        await wal.sync()
        again = Wal.open(disk.directory("raft"), segment_bytes=4096)
        records = list(again.replay())
        assert [position for position, _ in records] == list(range(2**32 - 3, 2**32 + 47))
        assert records[-1][1].endswith(b"49")
        assert len(disk.directory("raft").names()) > 5

    run(main)


_FILL = """
import sys
sys.path.insert(0, sys.argv[1])
from tests.support.bare_engine import write_entries
write_entries(__import__("pathlib").Path(sys.argv[2]), 100_000, b"x" * 500)
"""


@bare(9, "full disk", "dies of SIGBUS")
def test_bare_full_disk(tmp_path: Path, repository: Path) -> None:
    """The journal is a memory map over a file with holes: writing to a page the disk has no room for is no error that
    could be handled."""
    unshare, mount = need("unshare", "util-linux"), need("mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f'{mount} -t tmpfs -o size=256k tmpfs "$1" && shift && exec "$@"'
    inside = [unshare, "--mount", "--map-root-user", "sh", "-c", script, "sh", str(disk)]
    probe = subprocess.run([*inside, "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        missing(f"a private mount is not allowed here: {probe.stderr.strip()}")
    died = subprocess.run(
        [*inside, sys.executable, "-c", _FILL, str(repository), str(disk / "j")], capture_output=True, check=False
    )
    assert died.returncode == -signal.SIGBUS, died.stderr.decode()


@ours(9, "full disk", "lives and reads and acknowledges nothing", "cluster.raft_host.RaftHost._unwritten")
def test_ours_full_disk() -> None:
    """Files are written by calls that can fail; on failure leadership is given up, and the commit is tried again
    until there is room."""

    async def scene(cluster):
        leader = cluster.leader()
        await cluster.settled()
        leader.disk.full = True
        assert isinstance(await outcome(leader.host.propose(GROUP, command("r", "append", "k", 1))), Unknown)
        assert os.strerror(errno.ENOSPC) in leader.host.read_only() or "space" in leader.host.read_only()
        assert isinstance(await outcome(leader.host.propose(GROUP, b"x")), NoSpace)
        await cluster.until(lambda: cluster.leader() in others(cluster, leader))
        await cluster.leader().host.propose(GROUP, command("s", "append", "k", 2))
        leader.disk.full = False
        await cluster.settled()
        assert leader.host.read_only() is None
        assert leader.machine.state(0).lists["k"][-1] == 2

    with_cluster(scene)
