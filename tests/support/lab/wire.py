"""A wire between hosts that is slow and loses packets: a process that carries each of them by hand.

The usual tool, `tc netem`, is a kernel module that many container and micro-VM kernels lack, and a test that needs it
would be a test that never runs there. This needs TUN devices only. Each host gets one, with routes to the other hosts
over it; what arrives is passed on after its delay, or not at all. Packets are the kernel's own: TCP sees
round trips, loss and reordering as on a real line. The devices, and with them the routes, vanish with this process,
however it ends; so ending it is the cure.

    python -m tests.support.lab.wire --delay-ms=20 NAMESPACE=ADDRESS NAMESPACE=ADDRESS …
"""

import argparse
import fcntl
import heapq
import os
import random
import select
import struct
import subprocess
import time
from pathlib import Path

from tests.support.lab.network import enter_namespace

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_DEVICE = "wire0"
_MAX_PACKETS = 20_000
"""Packets under way at once; a real line drops what exceeds its queue, too."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-ms", type=float, required=True)
    parser.add_argument("--jitter-ms", type=float, default=0.0)
    parser.add_argument("--loss", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("hosts", nargs="+", metavar="NAMESPACE=ADDRESS")
    arguments = parser.parse_args()
    hosts = dict(given.split("=") for given in arguments.hosts)
    ends = {address: _open_end(namespace) for namespace, address in hosts.items()}
    for namespace, address in hosts.items():
        _route(namespace, address, [other for other in ends if other != address])
    print("in place", flush=True)
    _carry(
        {_packed(address): end for address, end in ends.items()},
        arguments.delay_ms / 1000,
        arguments.jitter_ms / 1000,
        arguments.loss,
        random.Random(arguments.seed),
    )


def _open_end(namespace: str) -> int:
    """The wire's end on one host: a TUN device, as a file of its packets."""
    enter_namespace(namespace)
    end = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", _DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    return end


def _route(namespace: str, own: str, others: list[str]) -> None:
    """Send what is meant for the other hosts over the wire, and take what comes from there."""
    enter_namespace(namespace)
    for scope in ("all", _DEVICE):  # they come from addresses whose way back is another device, before all switched
        Path(f"/proc/sys/net/ipv4/conf/{scope}/rp_filter").write_text("0")
    subprocess.run(["ip", "link", "set", _DEVICE, "up", "txqueuelen", "5000"], check=True)
    for other in others:
        subprocess.run(["ip", "route", "add", f"{other}/32", "dev", _DEVICE, "src", own], check=True)


def _carry(ends: dict[bytes, int], delay: float, jitter: float, loss: float, chance: random.Random) -> None:
    waiting: list[tuple[float, int, int, bytes]] = []
    number = 0
    poll = select.epoll()
    for end in ends.values():
        poll.register(end, select.EPOLLIN)
    while True:
        pause = waiting[0][0] - time.monotonic() if waiting else -1.0
        for end, _ in poll.poll(max(pause, 0.0) if waiting else None):
            now = time.monotonic()
            for packet in _packets(end):
                target = ends.get(packet[16:20]) if packet[0] >> 4 == 4 else None
                if target is None or len(waiting) >= _MAX_PACKETS or chance.random() < loss:
                    continue
                number += 1  # keeps the order of packets that are due at the same moment
                heapq.heappush(waiting, (now + delay + jitter * chance.random(), number, target, packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(waiting)
            try:
                os.write(target, packet)
            except OSError:  # the host's queue is full: lost, as on any line
                continue


def _packets(end: int) -> list[bytes]:
    found = []
    while len(found) < 64:
        try:
            found.append(os.read(end, 65536))
        except BlockingIOError:
            break
    return found


def _packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


if __name__ == "__main__":
    main()
