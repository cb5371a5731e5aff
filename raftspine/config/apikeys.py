"""The file of API keys: who may do what, without a single key in it.

The rule: a key is listed by its SHA-256, so whoever reads the file can check a key but not use one. Two
shapes are read, because one is easy to write by hand and the other by a script::

    - {name: ci, sha256: 9f86d081…, role: writer}          9f86d081…: writer
"""

from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import yaml

from raftspine.config import keys as k
from raftspine.config.reader import Report, Scalar, Section, Wrong, compose
from raftspine.config.schema import ConfigFaults
from raftspine.errors import Misuse

MAX_FILE_BYTES = 1 << 20


class KeyRole(StrEnum):
    """What a key may do: reader < writer < approver (who decides gates) < operator."""

    READER = "reader"
    WRITER = "writer"
    OPERATOR = "operator"
    APPROVER = "approver"


class ApiKey(NamedTuple):
    """One key as listed. `name` is for logs and audits."""

    name: str
    role: KeyRole


_role = k.member_of(KeyRole, tuple(KeyRole))


def load_api_keys(path: Path | str) -> dict[bytes, ApiKey]:
    """SHA-256 digest (32 bytes) -> key. ConfigFaults for all faults at once, Misuse when it cannot be read."""
    file = Path(path)
    try:
        data = file.read_bytes()
        if file.stat().st_mode & 0o002:
            raise Misuse(f"the API key file {file} can be changed by every user; run: chmod o-w {file}")
    except OSError as error:
        raise Misuse(f"cannot read the API key file {file}: {error.strerror}") from error
    try:
        text = data[:MAX_FILE_BYTES].decode()
    except UnicodeDecodeError as error:
        raise Misuse(f"the API key file {file} is not UTF-8 at byte {error.start}") from error
    return parse_api_keys(text, source=str(file))


def parse_api_keys(text: str, *, source: str = "API keys") -> dict[bytes, ApiKey]:
    """The same from text. An empty file is a fault: it would lock everyone out."""
    report = Report()
    root = compose(text, report)
    found: dict[bytes, ApiKey] = {}
    if isinstance(root, yaml.MappingNode):
        _read_mapping(report, root, found)
    elif isinstance(root, yaml.SequenceNode):
        _read_list(report, root, found)
    elif root is not None and not report.faults:
        report.fault("file", "is not a list of keys", "write `- {name: …, sha256: …, role: …}` lines")
    if not found and not report.faults:
        report.fault("file", "holds no keys", "list one: printf %s KEY | sha256sum")
    if report.faults:
        raise ConfigFaults(source, report.faults)
    return found


def _read_mapping(report: Report, root: yaml.MappingNode, found: dict[bytes, ApiKey]) -> None:
    for index, (key, value) in enumerate(root.value):
        path = f"[{index}]"
        report.place(path, f"line {key.start_mark.line + 1}")
        try:
            if not isinstance(key, yaml.ScalarNode) or not isinstance(value, yaml.ScalarNode):
                raise Wrong("is not `digest: role`")
            digest = _digest(Scalar(key.value, "str"))
            _add(found, digest, ApiKey(key.value[:8], _role(Scalar(value.value, "str"))))
        except Wrong as wrong:
            report.fault(path, wrong.message, wrong.remedy)


def _read_list(report: Report, root: yaml.SequenceNode, found: dict[bytes, ApiKey]) -> None:
    for index, item in enumerate(root.value):
        path = f"[{index}]"
        section = Section(report, path, item)
        if report.faulty(path):
            continue
        section.only(("name", "sha256", "role"))
        for key in ("name", "sha256", "role"):
            if not section.has(key):
                report.fault(f"{path}.{key}", "is missing", "a key has name, sha256 and role")
        name = section.get("name", k.text, "")
        digest = section.get("sha256", _digest, None)
        role = section.get("role", _role, None)
        if digest is not None and role is not None and name:
            try:
                _add(found, digest, ApiKey(name, role))
            except Wrong as wrong:
                report.fault(f"{path}.sha256", wrong.message, wrong.remedy)


def _digest(scalar: Scalar) -> bytes:
    try:
        digest = bytes.fromhex(scalar.text.strip())
    except ValueError:
        digest = b""
    if len(digest) != 32:
        # Not repeated in the message: someone may have put the key itself here.
        raise Wrong("is not a SHA-256", "64 hex digits: printf %s KEY | sha256sum")
    return digest


def _add(found: dict[bytes, ApiKey], digest: bytes, key: ApiKey) -> None:
    if digest in found:
        raise Wrong(f"is the same key as {found[digest].name!r}", "remove one of the two")
    found[digest] = key
