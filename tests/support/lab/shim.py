"""The library under each node that makes its wall clock wrong and its disk fail, on order (shim.c)."""

import subprocess
from pathlib import Path
from typing import Self


class Shim:
    """Built once per run, with the machine's compiler."""

    def __init__(self, library: Path) -> None:
        self.library = library

    @classmethod
    def build(cls, compiler: str, folder: Path) -> Self:
        source, library = Path(__file__).with_name("shim.c"), folder / "shim.so"
        command = [compiler, "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library), str(source), "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"cannot build the shim under the nodes:\n{done.stderr}")
        return cls(library)

    def environment(self, *, clock: Path, disk: Path, io_control: Path) -> dict[str, str]:
        """What a process needs to be started with."""
        return {
            "LD_PRELOAD": str(self.library),
            "LAB_CLOCK": str(clock),
            "LAB_IO_FOLDER": str(disk),
            "LAB_IO_CONTROL": str(io_control),
        }
