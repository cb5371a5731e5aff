"""A cluster file and an environment in, one `Config` out, or every fault there is.

The rule: read all, check all, then decide; the message has the faults in the order of the file.

`replication` and `consistency` may stand inside `cluster` (as the product's file has them) or at the top
level. Where the cluster file names no secret and no key file, files called `secret` and `api_keys.yaml`
beside it are used if they exist, so that the product's file serves a provisioned host without a change.
"""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import yaml

from raftspine.config import checks, environment, presets
from raftspine.config import keys as k
from raftspine.config.presets import Timing
from raftspine.config.reader import Report, Scalar, Section, Wrong, compose
from raftspine.config.schema import (
    DEFAULT_DATA_DIR,
    DEFAULT_OVERRIDES,
    DEFAULT_PORT,
    PEER_PORT_OFFSET,
    Config,
    ConfigFaults,
    Consistency,
    Fault,
    Partitioning,
    Replication,
    Security,
    Storage,
)
from raftspine.core.limits import Limits
from raftspine.core.routing import Override
from raftspine.errors import Misuse
from raftspine.model import Member, Model, NodeId, Role

MAX_FILE_BYTES = 1 << 20
SECRET_NAME = "secret"
API_KEYS_NAME = "api_keys.yaml"


def load(path: Path | str, env: Mapping[str, str], *, dev: bool = False) -> Config:
    """The configuration in this file. ConfigFaults (all of them); Misuse when the file cannot be read."""
    file = Path(path)
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise Misuse(f"cannot read the cluster file {file}: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        raise Misuse(f"the cluster file {file} is above 1 MiB; is it the right file?")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Misuse(f"the cluster file {file} is not UTF-8 at byte {error.start}") from error
    return parse(text, env, source=str(file), folder=file.parent, dev=dev)


def parse(
    text: str,
    env: Mapping[str, str],
    *,
    source: str = "configuration",
    folder: Path | None = None,
    dev: bool = False,
) -> Config:
    """The configuration in this text. `folder` is where unnamed secret and key files are looked for; `dev`
    lets through what is only safe to play with. ConfigFaults."""
    report = Report()
    root = compose(text, report)
    if report.faults:
        _give_up(source, report)
    return _Build(report, Section(report, "", root), env, folder, dev).config(source)


def _give_up(source: str, report: Report) -> NoReturn:
    raise ConfigFaults(source, sorted(report.faults, key=_line))


def _line(fault: Fault) -> int:
    """Where a fault stands in the file; what came from elsewhere is last."""
    word, _, number = fault.where.partition(" ")
    return int(number) if word == "line" else MAX_FILE_BYTES


class _Build:
    """One reading of one file: holds what every step needs."""

    def __init__(self, report: Report, top: Section, env: Mapping[str, str], folder: Path | None, dev: bool) -> None:
        self.report = report
        self.top = top
        self.env = env
        self.folder = folder
        self.dev = dev
        self.overrides = environment.overrides(env, report)
        top.only(k.TOP_KEYS)
        if not top.has("cluster"):
            report.fault("cluster", "is missing", "begin with `cluster:`, then name and nodes below it")
        self.cluster = Section(report, "cluster", top.node("cluster"), self.overrides["cluster"])
        self.cluster.only(k.CLUSTER_KEYS)

    def config(self, source: str) -> Config:
        report, dev = self.report, self.dev
        name = self.cluster.get("name", k.text, "")
        if not name and not report.faulty("cluster", within=False):
            report.fault("cluster.name", "is missing", "give the cluster a name")
        region = self.cluster.get("region", k.text, "default")
        members = self._members()
        checks.members(report, members)
        holders = sum(member.role is not Role.GATEWAY for _, member in members)
        replication = checks.replication(report, self._replication(holders), holders, dev=dev)
        consistency = self._consistency()
        checks.consistency(report, consistency, replication, dev=dev)
        partitioning = self._partitioning()
        storage = self._storage()
        timing = self._timing()
        limits = self._limits()
        security = self._security()
        secret = self._secret()
        self._not_yet()
        if report.faults:
            _give_up(source, report)
        return Config(
            name=name,
            members=tuple(member for _, member in members),
            replication=replication,
            region=region,
            secret=secret,
            consistency=consistency,
            partitioning=partitioning,
            storage=storage,
            timing=timing,
            limits=limits,
            security=security,
            dev=dev,
            source=source,
            warnings=tuple(report.warnings),
            notes=tuple(report.notes),
        )

    # ── cluster ────────────────────────────────────────────────────────────────────────────────────────────

    def _members(self) -> list[tuple[str, Member]]:
        members = []
        for path, node in self.cluster.items("nodes"):
            member = self._member(path, node)
            if member is not None:
                members.append((path, member))
        missing = not self.report.faulty("cluster.nodes", within=True) and not self.report.faulty("cluster")
        if not members and missing:
            self.report.fault("cluster.nodes", "names no nodes", "list at least one, with id and host")
        return members

    def _member(self, path: str, node: yaml.Node) -> Member | None:
        section = Section(self.report, path, node)
        if self.report.faulty(path):
            return None
        section.only(k.NODE_KEYS)
        for key in ("id", "host"):
            if not section.has(key):
                self.report.fault(f"{path}.{key}", "is missing", "each node needs an id and a host")
        port = section.get("port", k.port, DEFAULT_PORT)
        if not section.has("peer_port") and port + PEER_PORT_OFFSET > 65535:
            self.report.fault(f"{path}.peer_port", f"would be port + {PEER_PORT_OFFSET}, above 65535", "set it")
        member = Member(
            id=NodeId(section.get("id", k.node_id, "")),
            host=section.get("host", k.host, ""),
            port=port,
            peer_port=section.get("peer_port", k.port, port + PEER_PORT_OFFSET),
            zone=section.get("zone", k.text, ""),
            role=section.get("role", k.role, Role.PRIMARY),
            weight=section.get("weight", k.positive, 1.0),
        )
        return member if member.id and member.host else None

    def _nested(self, name: str) -> Section:
        """A section that may stand inside `cluster` or at the top, but not in both."""
        inner, outer = self.cluster.node(name), self.top.node(name)
        if inner is not None and outer is not None:
            both = f"is given inside cluster as well ({self.report.where(f'cluster.{name}')})"
            self.report.fault(name, both, "keep one of the two")
        path = name if inner is None else f"cluster.{name}"
        node = outer if inner is None else inner
        return Section(self.report, path, node, self.overrides[name])

    def _replication(self, holders: int) -> Replication:
        section = self._nested("replication")
        parsers = k.SETTINGS["replication"]
        section.only(parsers)
        factor = section.get("factor", parsers["factor"], min(3, holders) or 1)
        return Replication(
            factor,
            section.get("write_quorum", parsers["write_quorum"], factor // 2 + 1),
            section.get("read_quorum", parsers["read_quorum"], 1),
        )

    def _consistency(self) -> Consistency:
        section = self._nested("consistency")
        section.only(("default", "overrides"))
        default = section.get("default", k.model, Model.READ_YOUR_WRITES)
        if not section.has("overrides"):
            return Consistency(default, DEFAULT_OVERRIDES)
        found = (self._override(path, node) for path, node in section.items("overrides"))
        return Consistency(default, tuple(override for override in found if override is not None))

    def _override(self, path: str, node: yaml.Node) -> Override | None:
        section = Section(self.report, path, node)
        if self.report.faulty(path):
            return None
        section.only(k.OVERRIDE_KEYS)
        for key in k.OVERRIDE_KEYS:
            if not section.has(key):
                self.report.fault(f"{path}.{key}", "is missing", "an override has tags and a model")
        model = section.get("model", k.model, None)
        tags = section.texts("tags", _tag)
        if section.has("tags") and not tags and not self.report.faulty(f"{path}.tags", within=True):
            self.report.fault(f"{path}.tags", "is empty", "name at least one tag, or remove the override")
        return Override(frozenset(tags), model) if tags and model is not None else None

    # ── sections of scalars ────────────────────────────────────────────────────────────────────────────────

    def _flat(self, name: str) -> dict[str, Any]:
        """Every key of a section that was given, parsed."""
        section = Section(self.report, name, self.top.node(name), self.overrides[name])
        parsers = k.SETTINGS[name]
        section.only(parsers)
        values = {key: section.get(key, parse, None) for key, parse in parsers.items() if section.has(key)}
        return {key: value for key, value in values.items() if value is not None}

    def _partitioning(self) -> Partitioning:
        return Partitioning(**self._flat("partitioning"))

    def _storage(self) -> Storage:
        default = Path(".raftspine") if self.dev else DEFAULT_DATA_DIR
        return Storage(**{"data_dir": default, **self._flat("storage")})

    def _timing(self) -> Timing:
        given = self._flat("timing")
        timing = presets.timing(given.pop("preset", "lan"))
        timing = msgspec.structs.replace(timing, **given)
        checks.timing(self.report, timing)
        return timing

    def _limits(self) -> Limits:
        limits = Limits(**self._flat("limits"))
        checks.limits(self.report, limits)
        return limits

    def _security(self) -> Security:
        given = self._flat("security")
        tls = [key for key in ("tls_cert", "tls_key", "tls_ca") if key in given]
        if tls and len(tls) < 3 and not self.report.faulty("security", within=True):
            self.report.fault(f"security.{tls[0]}", "is not enough for TLS", "set tls_cert, tls_key and tls_ca")
        if "api_keys_file" not in given and (beside := self._beside(API_KEYS_NAME)) is not None:
            given["api_keys_file"] = beside
        return Security(**given)

    def _not_yet(self) -> None:
        for name in k.NOT_YET:
            node = self.top.node(name)
            if node is not None and node.value and node.tag != "tag:yaml.org,2002:null":
                self.report.fault(name, "is not supported by this version", "leave it empty or remove it")

    # ── the secret ─────────────────────────────────────────────────────────────────────────────────────────

    def _secret(self) -> bytes | None:
        """From the environment, else from `cluster.secret_file`, else from a file beside the cluster file."""
        path = "cluster.secret_file"
        named = self.cluster.get("secret_file", k.path, None)
        if environment.SECRET in self.env:
            secret = self.env[environment.SECRET].strip().encode("utf-8", "surrogateescape")
            if len(secret) < checks.MIN_SECRET_BYTES:
                fault = f"{environment.SECRET} has {len(secret)} bytes"
                self.report.fault(path, fault, f"use {checks.MIN_SECRET_BYTES} random bytes or more")
            return secret
        file = named or self._beside(SECRET_NAME)
        return None if file is None else self._read_secret(path, file)

    def _read_secret(self, path: str, file: Path) -> bytes | None:
        try:
            with file.open("rb") as opened:
                mode = file.stat().st_mode
                secret = opened.read(4096).strip()
        except OSError as error:
            self.report.fault(path, f"cannot read {file}: {error.strerror}", "create it on every node")
            return None
        if mode & stat.S_IRWXO:
            self.report.fault(path, f"{file} is open to every user of this machine", f"chmod o-rwx {file}")
        elif len(secret) < checks.MIN_SECRET_BYTES:
            fault = f"{file} holds {len(secret)} bytes"
            self.report.fault(path, fault, f"use {checks.MIN_SECRET_BYTES} random bytes or more")
        return secret

    def _beside(self, name: str) -> Path | None:
        if self.folder is None:
            return None
        file = self.folder / name
        return file if file.is_file() else None


def _tag(scalar: Scalar) -> str:
    """A tag of the router; numbers and dates are texts here, as a writer's tag would be."""
    if not 1 <= len(scalar.text) <= 255 or not scalar.text.isprintable():
        raise Wrong("is no tag", "a tag is 1 to 255 printable characters")
    return scalar.text
