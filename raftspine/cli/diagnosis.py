"""From what each node says of itself to what is wrong and what to do about it.

A function of the answers, so that every sentence an operator may read at three in the morning has a test. The
rule: a finding names the thing, then the remedy; it never reports a symptom whose cause it also reports. When
a node is down, its missing links and its lag are the same news, told once.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from raftspine.model import Member, node_of

LAG_S = 5.0
"""A healthy peer confirms within one round of batches, some milliseconds; seconds mean it cannot keep up."""

RAFT_LAG = 1000
"""Entries applied behind the leader. A second's worth at a moderate load."""

STORE_FULL = 0.8

UNWRITABLE = "cannot be written"
"""In the reason of a group whose node cannot write its Raft journal: a condition that passes."""


NO_MAJORITY = "none has a majority"
"""In the reason of a group whose replicas differ without one of them being known to be wrong."""


class View(NamedTuple):
    """One node, asked: `status` is its own account, or None with the reason in `silence`."""

    member: Member
    status: Mapping[str, Any] | None
    silence: str = ""

    @property
    def url(self) -> str:
        host = f"[{self.member.host}]" if ":" in self.member.host else self.member.host
        return f"http://{host}:{self.member.port}"


class Finding(NamedTuple):
    problem: str
    remedy: str


def diagnose(views: Sequence[View]) -> list[Finding]:
    """Everything that is wrong, worst first."""
    return [
        *_strangers(views),
        *_down(views),
        *_leaderless(views),
        *_quarantined(views),
        *_halted(views),
        *_read_only(views),
        *_unready(views),
        *_links(views),
        *_behind(views),
        *_filling(views),
        *_mixed(views),
    ]


def raft_lag(view: View, views: Sequence[View]) -> int:
    """Entries this node has yet to apply, in its slowest group, against the highest commit index anyone knows."""
    commits: dict[str, int] = {}
    for other in views:
        for group in _groups(other):
            commits[group["group"]] = max(commits.get(group["group"], 0), group["commit"])
    return max((commits[group["group"]] - group["applied"] for group in _groups(view)), default=0)


def ring_lag(view: View, views: Sequence[View]) -> tuple[float, int]:
    """How far this node is behind in ring writes as its peers see it: seconds and writes, both the worst."""
    seen = [peers[view.member.id] for peers in map(_peers, views) if view.member.id in peers]
    return (
        max((float(peer["lag_seconds"]) for peer in seen), default=0.0),
        max((int(peer["pending_dots"]) for peer in seen), default=0),
    )


def _up(views: Sequence[View]) -> list[View]:
    return [view for view in views if view.status is not None]


def _groups(view: View) -> Sequence[Mapping[str, Any]]:
    return () if view.status is None else view.status.get("groups", ())


def _peers(view: View) -> Mapping[str, Mapping[str, Any]]:
    return {} if view.status is None else view.status.get("peers", {})


def _strangers(views: Sequence[View]) -> Iterator[Finding]:
    ids = {view.status.get("cluster_id") for view in views if view.status is not None} - {None}
    if len(ids) > 1:
        yield Finding(
            f"these nodes belong to {len(ids)} different clusters",
            "a node was given another cluster's address or data directory; compare their `cluster.nodes`",
        )


def _down(views: Sequence[View]) -> Iterator[Finding]:
    for view in views:
        if view.status is None:
            member = view.member
            yield Finding(
                f"{member.id} does not answer at {view.url} ({view.silence})",
                f"start it: raftspine serve --config FILE --node {member.id}; if it runs, look at its log "
                "and at the network between here and there",
            )


def _leaderless(views: Sequence[View]) -> Iterator[Finding]:
    """Groups that nobody leads, told together: one lost majority takes many groups with it."""
    down = {view.member.id for view in views if view.status is None}
    led = {g["group"] for view in views for g in _groups(view) if g["role"] == "leader"}
    voters = {g["group"]: tuple(map(node_of, g["voters"])) for view in views for g in _groups(view)}
    stuck = sorted((g for g, members in voters.items() if g not in led and members), key=_in_order)
    lost = [g for g in stuck if 2 * len(down.intersection(voters[g])) >= len(voters[g])]
    if lost:
        missing = ", ".join(sorted(down.intersection(*(set(voters[g]) for g in lost)) or down))
        yield Finding(
            f"{_several(lost)} lost the majority: what needs one is refused there",
            f"bring back {missing}; nothing that was acknowledged is lost meanwhile",
        )
    waiting = [g for g in stuck if g not in lost]
    if waiting:
        yield Finding(
            f"{_several(waiting)} no leader",
            "an election takes a second or two; if it lasts, check the peers' ports and the clocks' load",
        )


def _quarantined(views: Sequence[View]) -> Iterator[Finding]:
    """Replicas whose state differs from the others'. Where a majority says what is right, it heals by itself."""
    for view in _up(views):
        for group in _groups(view):
            if group.get("quarantined"):
                reason = str(group.get("reason", ""))
                yield Finding(
                    f"{view.member.id} shows nothing of {group['group']}: {reason}",
                    "nobody knows which replica is right: start the missing nodes; if all are up, see "
                    "docs/operations.md, A replica that differs"
                    if NO_MAJORITY in reason
                    else "it takes the state of a sound replica by itself; find out why it differs (memory, disk)",
                )


def snapshots(view: View) -> list[str]:
    """The snapshots this node takes or sends now, a sentence each."""
    lines = []
    for group in _groups(view):
        for one in group.get("snapshots", ()):
            way = f"sends {one['to']}" if "to" in one else "receives"
            size = one["bytes"] / (1 << 20)
            lines.append(f"{view.member.id} {way} a snapshot of {group['group']}: {size:.1f} MiB so far")
    return lines


def _halted(views: Sequence[View]) -> Iterator[Finding]:
    for view in _up(views):
        stopped: dict[str, list[str]] = {}
        for group in _groups(view):
            if group.get("reason") and not group.get("quarantined"):
                stopped.setdefault(group["reason"], []).append(group["group"])
        for reason, groups in stopped.items():
            if UNWRITABLE in reason:
                remedy = f"make room on the disk of {view.member.id}, or mend it; it goes on by itself"
            else:
                remedy = "look at its log, and leave its data directory as it is; the other replicas go on meanwhile"
            names = ", ".join(groups) if len(groups) <= 3 else f"{len(groups)} groups ({', '.join(groups[:3])}, …)"
            yield Finding(f"{view.member.id} has stopped {names}: {reason}", remedy)


def _read_only(views: Sequence[View]) -> Iterator[Finding]:
    for view in _up(views):
        assert view.status is not None
        if view.status.get("read_only"):
            yield Finding(
                f"{view.member.id} refuses writes: {view.status['read_only']}",
                f"make room on the disk of {view.member.id}; it goes on by itself",
            )


def _unready(views: Sequence[View]) -> Iterator[Finding]:
    """What a node says it lacks, where no other finding has said it."""
    told = ("has no leader", "writes are refused")
    for view in _up(views):
        assert view.status is not None
        halted = {f"{g['group']}: {g['reason']}" for g in _groups(view) if g.get("reason")}
        left = [r for r in view.status.get("reasons", ()) if r not in halted and not any(t in r for t in told)]
        if left:
            yield Finding(f"{view.member.id} is not ready: {'; '.join(left)}", "it may still be starting; look again")


def _links(views: Sequence[View]) -> Iterator[Finding]:
    up = {view.member.id for view in _up(views)}
    for view in _up(views):
        for peer, link in _peers(view).items():
            if peer in up and not link["connected"]:
                yield Finding(
                    f"{view.member.id} has no link to {peer}, though both are up",
                    f"check that {view.member.id} reaches the peer port of {peer}, with the same secret",
                )


def _behind(views: Sequence[View]) -> Iterator[Finding]:
    for view in _up(views):
        seconds, pending = ring_lag(view, views)
        if seconds > LAG_S:
            yield Finding(
                f"{view.member.id} is {seconds:.0f} s behind ({pending} ring writes)",
                "it is catching up, or its disk or network is too slow; watch whether the number falls",
            )
        entries = raft_lag(view, views)
        if entries > RAFT_LAG:
            yield Finding(
                f"{view.member.id} is {entries} log entries behind",
                "it is catching up; strong reads go on at the leaders meanwhile",
            )


def _filling(views: Sequence[View]) -> Iterator[Finding]:
    for view in _up(views):
        assert view.status is not None
        ratio = float(view.status.get("store_used_ratio", 0.0))
        if ratio >= STORE_FULL:
            yield Finding(
                f"the store of {view.member.id} is {ratio:.0%} full",
                "remove memories, or raise the size of its map in the configuration and restart it",
            )


def _mixed(views: Sequence[View]) -> Iterator[Finding]:
    for name, remedy in (
        ("epoch", "a table is still spreading; if it lasts, some node cannot reach the meta group"),
        ("version", "finish the upgrade"),
    ):
        held = {view.member.id: view.status.get(name) for view in views if view.status is not None}
        if len(set(held.values())) > 1:
            yield Finding(f"{name}s differ: {', '.join(f'{n} {v}' for n, v in held.items())}", remedy)


def _several(groups: Sequence[str]) -> str:
    if len(groups) <= 3:
        return f"{', '.join(groups)} {'has' if len(groups) == 1 else 'have'}"
    return f"{len(groups)} groups ({', '.join(groups[:3])}, …) have"


def _in_order(group: str) -> tuple[int, str]:
    """The meta group first, then by number: `group 2` before `group 10`."""
    number = group.rpartition(" ")[2]
    return (int(number) if number.isdigit() else -1, group)
