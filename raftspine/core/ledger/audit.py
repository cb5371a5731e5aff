"""What was done, by whom, so that nobody can rewrite it unnoticed.

The rule: every act on a gate, every lock an operator breaks, and every privileged act that was refused appends an
entry to the thing's chain in the log entry that decided it. Each entry holds the hash of the one before, so a chain
whose last hash is known to somebody else (a ticket, a mail, another system) proves all of its past: an entry that was
changed, dropped or put in between breaks every hash after it. Entries are never trimmed and never changed; what they
say is what the machine decided, not what a client claimed.

The hash is SHA-256 over `previous hash`, a newline, and the entry as JSON with sorted keys and no blanks, UTF-8:
a few lines in any language check an exported chain without this program.
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

from msgspec import Struct

from raftspine.core.ledger import limits
from raftspine.core.ledger.state import LedgerView
from raftspine.core.ledger.tables import Table, pack
from raftspine.core.ledger.work import Work

START = "0" * 64
"""What the first entry of a chain names as the hash before it."""


class Entry(Struct, frozen=True, array_like=True):
    """`seq` counts from 1 without gaps. `index`: the log entry. `refused`: the act changed nothing but this
    chain."""

    seq: int
    index: int
    time_ms: int
    actor: str
    action: str
    subject: str
    details: dict[str, Any]
    refused: bool
    previous: str
    hash: str


class Head(Struct, frozen=True, array_like=True):
    seq: int
    hash: str


ENTRIES = Table("audit-chain", Entry)
HEADS = Table("audit-head", Head)


def digest(seq: int, index: int, time_ms: int, actor: str, action: str, subject: str,
           details: dict[str, Any], refused: bool, previous: str) -> str:  # fmt: skip
    """The hash of an entry, from its content and the hash before it."""
    content = {
        "seq": seq, "index": index, "time_ms": time_ms, "actor": actor, "action": action,
        "subject": subject, "details": details, "refused": refused,
    }  # fmt: skip
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return sha256(f"{previous}\n{text}".encode()).hexdigest()


def append(
    work: Work,
    kind: str,
    name: str,
    action: str,
    subject: str = "",
    *,
    refused: bool = False,
    details: Mapping[str, Any] | None = None,
    **more: Any,
) -> None:
    """Add an entry to the chain of one thing: `kind` and `name`. Details that are None or empty are left out."""
    head = HEADS.get(work, kind, name) or Head(0, START)
    told = {name: value for name, value in {**(details or {}), **more}.items() if value not in (None, "", (), [], {})}
    content = (head.seq + 1, work.at.index, work.time_ms, work.agent, action, subject, told, refused, head.hash)
    entry = Entry(*content, digest(*content))
    work.put(ENTRIES, kind, name, entry.seq, value=entry)
    work.put(HEADS, kind, name, value=Head(entry.seq, entry.hash))


def read(view: LedgerView, kind: str, name: str, after: int, limit: int) -> list[Entry]:
    """Up to `limit` entries behind number `after`, in order."""
    if not _known(kind, name):
        return []
    return [
        entry for _, entry in ENTRIES.page(view, pack(kind, name), start=pack(kind, name, after + 1), limit=limit)
    ]


def head(view: LedgerView, kind: str, name: str) -> Head | None:
    return HEADS.get(view, kind, name) if _known(kind, name) else None


def _known(kind: str, name: str) -> bool:
    """Whether these can name a chain; that of a group's freezes has no name."""
    return limits.name(kind) is None and (not name or limits.name(name) is None)


def broken(entries: Iterable[Entry], previous: str = START, seq: int = 0) -> str | None:
    """Where a chain, or the part of one behind entry `seq`, does not hold; None when it does."""
    for entry in entries:
        seq += 1
        if entry.seq != seq:
            return f"entry {seq} is missing: {entry.seq} stands in its place"
        if entry.previous != previous:
            return f"entry {seq} follows another entry than the one before it"
        content = (entry.seq, entry.index, entry.time_ms, entry.actor, entry.action, entry.subject, entry.details,
                   entry.refused, entry.previous)  # fmt: skip
        if digest(*content) != entry.hash:
            return f"entry {seq} was changed after it was written"
        previous = entry.hash
    return None
