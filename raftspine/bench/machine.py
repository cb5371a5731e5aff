"""Where and with what a figure was measured. A figure without these is a rumour."""

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from raftspine._version import __version__

LIBRARIES = ("aiohttp", "lmdb", "msgpack", "msgspec", "pysyncobj", "uvloop")


def describe(wall_ms: int) -> dict[str, str]:
    """The machine and the versions, as text; `wall_ms` is when."""
    return {
        "date": datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "raftspine": __version__,
        "libraries": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
    }


def program_version(command: Sequence[str], pattern: str) -> str | None:
    """What a program says of its version, or None where it is not installed."""
    try:
        output = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(pattern, output.stdout + output.stderr)
    return found.group(1) if found else None


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _memory() -> str:
    found = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    return f"{int(found.group(1)) / (1 << 20):.0f} GiB" if found else "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
