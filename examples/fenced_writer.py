"""A writer to a file store is paused past its lease. When it wakes it still believes in it; the store does not.

A lock alone cannot prevent that: no clock in the paused process runs. The token can. Before it writes, the file store
shows the writer's token to a fence, which remembers the highest it has seen.

Run it against a development cluster (`raftspine dev`): python examples/fenced_writer.py
"""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from raftspine import Spine, StaleToken

URL = os.environ.get("RAFTSPINE_URL", "http://127.0.0.1:8788").split(",")


class FileStore:
    """A file behind a fence: it takes a token with each write, and no token below the highest it has seen."""

    def __init__(self, spine: Spine, file: Path) -> None:
        self._fence = spine.fence(f"file/{file.name}")
        self._file = file

    def write(self, text: str, token: int) -> None:
        self._fence.advance(token)
        self._file.write_text(text)


def first_writer(file: Path) -> None:
    """Takes the lock, then waits for its turn to write: that is where it will be paused."""
    with Spine(URL) as spine:
        lease = spine.lock("file/report", ttl=2).acquire()
        print("first writer has token", lease.token, flush=True)
        sys.stdin.readline()
        try:
            FileStore(spine, file).write("written by the first", lease.token)
        except StaleToken as stale:
            print("first writer is refused: token", lease.token, "is below", stale.highest, flush=True)


def main(file: Path) -> None:
    first = subprocess.Popen([sys.executable, __file__, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdin is not None and first.stdout is not None
    print(first.stdout.readline().decode().strip())
    os.kill(first.pid, signal.SIGSTOP)
    with Spine(URL) as spine, spine.lock("file/report", ttl=10, wait=60) as lease:
        print("second writer has token", lease.token)
        FileStore(spine, file).write("written by the second", lease.token)
    os.kill(first.pid, signal.SIGCONT)
    out, _ = first.communicate(b"go on\n", timeout=60)
    print(out.decode().strip())
    print("the file says:", file.read_text())
    assert file.read_text() == "written by the second"


if len(sys.argv) > 1:
    first_writer(Path(sys.argv[1]))
else:
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder) / f"report-{os.getpid()}.txt")
