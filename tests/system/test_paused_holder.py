"""A holder of a lock that was stopped past its lease cannot write when it wakes, and loses nobody's update.

The suite does it a few times; RAFTSPINE_PAUSED_ROUNDS=100 as often as one likes.
"""

import os
import subprocess
import sys
from pathlib import Path
from signal import Signals

import pytest

from raftspine import Fenced, LockHeld, Spine
from tests.support.cluster import LocalCluster
from tests.support.processes import Processes

ROUNDS = int(os.environ.get("RAFTSPINE_PAUSED_ROUNDS", "3"))

pytestmark = [pytest.mark.system, pytest.mark.timeout(120 + 20 * ROUNDS)]

HOLDER = """
import sys
from raftspine import Fenced, LeaseLost, Spine
with Spine(sys.argv[1].split(",")) as spine:
    while True:
        holder = spine.lock("{account}l", ttl=2)
        lease = holder.acquire()
        found = spine.get("account", consistency="strong").content
        print(lease.token, flush=True)
        if sys.stdin.readline() != "go on\\n":
            break
        try:
            spine.put("account", found + 1000, guard=lease)
            print("wrote", flush=True)
        except Fenced:
            print("fenced", flush=True)
        try:
            holder.release()
        except LeaseLost:
            print("lost", flush=True)
"""


def test_the_guarded_write_of_a_paused_holder_is_refused(processes: Processes, tmp_path: Path) -> None:
    cluster = LocalCluster(processes, tmp_path)
    cluster.start()
    with Spine(cluster.urls) as spine:
        spine.put("account", 0, tags=["lock"])
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLDER, ",".join(cluster.urls)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert holder.stdin is not None and holder.stdout is not None
            for number in range(ROUNDS):
                token = int(holder.stdout.readline())
                holder.send_signal(Signals.SIGSTOP)
                with pytest.raises(LockHeld):
                    spine.lock("{account}l", wait=0).acquire()
                with spine.lock("{account}l", ttl=10, wait=60) as lease:
                    assert lease.token > token
                    found = spine.get("account", consistency="strong").content
                    assert found == number, "an update was lost"
                    spine.put("account", found + 1, guard=lease)
                holder.send_signal(Signals.SIGCONT)
                holder.stdin.write("go on\n")
                holder.stdin.flush()
                assert [holder.stdout.readline().strip() for _ in range(2)] == ["fenced", "lost"]
            with pytest.raises(Fenced):
                spine.put("account", -1, guard=lease)
            assert spine.get("account", consistency="strong").content == ROUNDS
        finally:
            holder.kill()
            holder.communicate()
