"""What the measured processes themselves cost: CPU and memory of a process and all that it started.

Throughput on a machine shared with the load generator says little about a store unless it is known how much
of the machine the store had. Linux only, by /proc; elsewhere the figures are left out of the report.
"""

import os
from pathlib import Path
from typing import NamedTuple


class Usage(NamedTuple):
    """`cpu_s` since the processes started; `rss_bytes` without the pages they share with others."""

    cpu_s: float
    rss_bytes: int

    def since(self, earlier: "Usage") -> float:
        return self.cpu_s - earlier.cpu_s


def children(pid: int) -> list[int]:
    """The processes that `pid` started, not theirs."""
    parents = _parents()
    return sorted(child for child, parent in parents.items() if parent == pid)


def usage(pid: int) -> Usage:
    """Of a process and all below it; zeros where the system does not tell."""
    parents = _parents()
    cpu, rss = 0.0, 0
    tick, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    for found in [pid, *(child for child in parents if _below(child, pid, parents))]:
        try:
            fields = Path(f"/proc/{found}/stat").read_text(errors="replace").rpartition(")")[2].split()
            resident, shared = Path(f"/proc/{found}/statm").read_text().split()[1:3]
        except OSError:
            continue  # it ended while we looked
        cpu += (int(fields[11]) + int(fields[12])) / tick
        rss += (int(resident) - int(shared)) * page
    return Usage(cpu, rss)


def _parents() -> dict[int, int]:
    found = {}
    for entry in os.listdir("/proc") if Path("/proc/self/stat").exists() else ():
        if entry.isdigit():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue  # it ended while we looked
            found[int(entry)] = int(fields[1])
    return found


def _below(pid: int, ancestor: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False
