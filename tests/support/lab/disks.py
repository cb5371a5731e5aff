"""A disk per node that can be filled up; shim.py makes its writes and syncs fail.

The disk is a small tmpfs: a full one refuses as any full file system does. What it cannot show is power loss, since
nothing on it is ever synced to anything; the simulator's disks do that.
"""

import errno
import os
import re
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

BALLAST = "ballast"
_PREFIX = "spinelab"


class Disk:
    """A mounted tmpfs of `size_mib`. Use in a `with`; needs root."""

    def __init__(self, folder: Path, size_mib: int) -> None:
        self.folder = folder
        self._size_mib = size_mib

    def fill(self) -> None:
        """Take all the space that is left."""
        block = bytes(1 << 16)
        with open(self.folder / BALLAST, "ab", buffering=0) as file:
            size = len(block)
            while size:
                try:
                    file.write(block[:size])
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2  # down to the last byte

    def free(self) -> None:
        (self.folder / BALLAST).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        remove_stale_disks()
        self.folder.mkdir(parents=True, exist_ok=True)
        options = f"size={self._size_mib}m,mode=700"
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, f"{_PREFIX}{os.getpid()}", str(self.folder)], check=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


def remove_stale_disks() -> None:
    """What killed runs left mounted: the source's name holds the process id of the run."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        source, folder = line.split()[:2]
        found = re.fullmatch(rf"{_PREFIX}([0-9]+)", source)
        if found and not os.path.exists(f"/proc/{found[1]}"):
            subprocess.run(["umount", "--lazy", folder.encode().decode("unicode_escape")], check=True)
