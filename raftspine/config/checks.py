"""How settings must relate, all in one place: what is refused, what is warned about, what is explained.

The rule: a combination that can lose an acknowledged write, or can never work, is refused with the reason;
one that works but surprises is a warning. Without a single place for it, each pair of settings would be
checked by the module that happens to read the second of them, at the time it happens to.

Quorums here are about the ring. W + R <= N is not refused: sessions carry what they wrote in their token, and
a reader without one asks N - W + 1 replicas (available-path design, "Sessions").
"""

from collections import Counter
from ipaddress import ip_address

from raftspine.config.presets import Timing
from raftspine.config.reader import Report
from raftspine.config.schema import Config, ConfigFaults, Consistency, Fault, Replication
from raftspine.core.limits import Limits
from raftspine.model import Member, Model, NodeId, Role

MIN_SECRET_BYTES = 16
MAX_META_VOTERS = 5


def is_loopback(host: str) -> bool:
    """True only for what no other machine can reach; other names than localhost may resolve to anything."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def guard_bind(config: Config, node: NodeId) -> None:
    """Raise ConfigFaults when this node may not open its ports as configured: beyond loopback without API
    keys or without a cluster secret, or with peers but without a secret. Called before anything listens."""
    host = config.member(node).host
    faults = []
    if not is_loopback(host):
        if config.security.api_keys_file is None:
            faults.append(
                Fault(
                    "security.api_keys_file",
                    "",
                    f"{node} would serve {host} without API keys, to whoever reaches it",
                    "list the SHA-256 of each key in a file named here, or in api_keys.yaml beside the "
                    "cluster file; or use 127.0.0.1",
                )
            )
        if config.secret is None:
            faults.append(_no_secret(f"{node} would listen for peers on {host} without a cluster secret"))
    elif config.secret is None and len(config.members) > 1 and not config.dev:
        faults.append(_no_secret("nodes prove to each other that they belong together by a cluster secret"))
    if faults:
        raise ConfigFaults(config.source, faults)


def _no_secret(message: str) -> Fault:
    return Fault(
        "cluster.secret_file",
        "",
        message,
        f"put {MIN_SECRET_BYTES} or more random bytes into a file, the same on all nodes, or into "
        "RAFTSPINE_CLUSTER_SECRET",
    )


def members(report: Report, members: list[tuple[str, Member]]) -> None:
    """What nodes must not share, and who has to be there. `members` come with their paths."""
    ids: dict[str, str] = {}
    ports: dict[tuple[str, int], str] = {}
    for path, member in members:
        if member.id in ids:
            report.fault(f"{path}.id", f"{member.id!r} is also the id of {ids[member.id]}", "give each node its own")
        ids.setdefault(member.id, path)
        for key, port in (("port", member.port), ("peer_port", member.peer_port)):
            taken = ports.get((member.host, port))
            if taken is not None:
                report.fault(f"{path}.{key}", f"{member.host}:{port} is taken by {taken}", "choose another port")
            ports.setdefault((member.host, port), f"{path}.{key}")
    if report.faulty("cluster.nodes", within=True):
        return
    primaries = [member for _, member in members if member.role is Role.PRIMARY]
    if not primaries:
        report.fault("cluster.nodes", "has no primary: nobody could keep the cluster's table", "make one")
    elif len(primaries) in (2, 4) and len(members) > 1:
        report.warn(
            "cluster.nodes",
            f"{len(primaries)} primaries survive no more failures than {len(primaries) - 1}: a majority "
            "is needed for the cluster's table",
        )
    elif len(primaries) > MAX_META_VOTERS:
        report.notes.append(f"{MAX_META_VOTERS} of the {len(primaries)} primaries vote in the meta group")
    _zones(report, [member for _, member in members if member.role is not Role.GATEWAY])


def _zones(report: Report, holders: list[Member]) -> None:
    if len(holders) < 2 or any(is_loopback(member.host) for member in holders):
        return
    zones = Counter(member.zone for member in holders)
    if len(zones) == 1:
        zone = next(iter(zones))
        said = f"all nodes are in zone {zone!r}" if zone else "no node says its zone"
        report.warn("cluster.nodes", f"{said}: copies cannot be spread, one outage may take all of them")


def replication(report: Report, rep: Replication, holders: int, *, dev: bool) -> Replication:
    """Faults for impossible quorums. In `dev`, a factor above the number of nodes is cut down instead."""
    if not report.faulty("cluster.nodes", within=True) and rep.factor > holders:
        message = f"{rep.factor} copies cannot be kept on {holders} data node{'s' if holders != 1 else ''}"
        if not dev:
            report.fault(_rep("factor", report), message, f"use at most {holders}, or add nodes")
            return rep
        report.warn(_rep("factor", report), f"{message}; dev goes on with {holders}")
        rep = Replication(holders, min(rep.write_quorum, holders // 2 + 1), min(rep.read_quorum, holders))
    for key, value in (("write_quorum", rep.write_quorum), ("read_quorum", rep.read_quorum)):
        if value > rep.factor:
            report.fault(
                _rep(key, report),
                f"{value} copies can never answer when there are {rep.factor}",
                f"use at most {rep.factor}; a majority is {rep.factor // 2 + 1}",
            )
    _explain_quorums(report, rep)
    return rep


def _explain_quorums(report: Report, rep: Replication) -> None:
    if report.faults:
        return
    n, w, r = rep.factor, rep.write_quorum, rep.read_quorum
    if w < n // 2 + 1:
        report.warn(
            _rep("write_quorum", report),
            f"{w} of {n}: for a moment an acknowledged write may have no more than {w} copies",
        )
    if n > 1 and w + r <= n:
        report.notes.append(
            f"write quorum {w} and read quorum {r} of {n} do not intersect, and need not: a session's token "
            f"says what it has written, and a reader without a token asks {n - w + 1} replicas"
        )
    if n % 2 == 0 and n > 2:
        report.warn(_rep("factor", report), f"{n} copies survive no more failures than {n - 1} on a majority")


def consistency(report: Report, chosen: Consistency, rep: Replication, *, dev: bool) -> None:
    """`strong` needs a majority that outlives a failure."""
    seen: dict[str, tuple[str, Model]] = {}
    base = _place("consistency", report)
    strong = [f"{base}.default"] if chosen.default is Model.STRONG else []
    for index, override in enumerate(chosen.overrides):
        path = f"{base}.overrides[{index}]"
        if override.model is Model.STRONG:
            strong.append(path)
        for tag in sorted(override.tags):
            if tag in seen and seen[tag][1] is not override.model:
                report.warn(path, f"tag {tag!r} is also in {seen[tag][0]}; the stronger of the two models wins")
            seen.setdefault(tag, (path, override.model))
    if not strong or report.faulty(_rep("factor", report)):
        return
    if rep.factor == 2 and not dev:
        report.fault(
            _rep("factor", report),
            f"strong ({strong[0]}) with 2 copies stops at the first failure: a majority of 2 is 2",
            "use 3 copies, or 1, or an empty list of overrides",
        )
    elif rep.factor == 1 and not dev:
        report.warn(_rep("factor", report), "strong memories have one copy: they are lost with their disk")


_ORDER = (
    ("election_min_ms", "heartbeat_ms", 10, "followers would stand for election between two heartbeats"),
    ("election_max_ms", "election_min_ms", 2, "candidates would split the vote again and again"),
    ("check_quorum_ms", "heartbeat_ms", 10, "leaders would step down without cause"),
    ("peer_dead_ms", "heartbeat_ms", 10, "quiet links would be cut"),
)
"""Timing that must be above another, by what factor it better is, and what happens otherwise."""


def timing(report: Report, chosen: Timing) -> None:
    """An election must take longer than a sign of life, and a leader give up before the next is made."""
    for key, other, times, why in _ORDER:
        value, least = getattr(chosen, key), getattr(chosen, other)
        if value <= least:
            report.fault(
                f"timing.{key}",
                f"{value} ms is not above {other} ({least} ms): {why}",
                f"use {times * least}",
            )
    if chosen.heartbeat_ms < chosen.election_min_ms < 4 * chosen.heartbeat_ms:
        report.warn("timing.election_min_ms", "less than 4 heartbeats: a short pause starts an election")
    if chosen.check_quorum_ms > chosen.election_min_ms:
        report.warn(
            "timing.check_quorum_ms",
            "is above election_min_ms: a cut-off leader may still believe in itself when the next is elected "
            "(writes and reads stay safe, clients wait longer)",
        )
    if chosen.sync_interval_ms > 1000:
        report.warn("timing.sync_interval_ms", "power loss may take more than a second of acknowledged writes")


def limits(report: Report, chosen: Limits) -> None:
    """What is allowed inside must fit what it comes in."""
    for inner, outer in (("content_bytes", "body_bytes"), ("body_bytes", "batch_body_bytes")):
        if getattr(chosen, inner) > getattr(chosen, outer):
            report.fault(
                f"limits.{inner}",
                f"{getattr(chosen, inner)} is above limits.{outer} ({getattr(chosen, outer)})",
                f"raise {outer} or lower {inner}",
            )


def _place(section: str, report: Report) -> str:
    """The section's path where it was written: inside `cluster` or at the top."""
    nested = f"cluster.{section}"
    return nested if report.placed(nested) else section


def _rep(key: str, report: Report) -> str:
    return f"{_place('replication', report)}.{key}"
