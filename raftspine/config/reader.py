"""From YAML nodes to values, remembering for each where it stood.

The rule: reading goes on after a fault, and each fault knows its path and its line. Without the first an
operator with ten mistakes needs ten attempts; without the second, a search. YAML is composed, not loaded:
only the nodes carry line numbers, and nothing is constructed that could be more than text and numbers.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeVar

import yaml

from raftspine.config.schema import Fault

T = TypeVar("T")


class Wrong(Exception):
    """A value that cannot be taken: what is wrong, and what to do."""

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class Scalar(NamedTuple):
    """A single value as written. `kind` is YAML's view of it: str, int, float, bool, null; a value that came
    from the environment is whatever the reader wants it to be."""

    text: str
    kind: str
    from_env: bool = False


Parse = Callable[[Scalar], T]
Key = tuple[str, str]


class Report:
    """Faults and warnings as they are found. At most one fault per path: the first is the cause."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self._places: dict[str, str] = {}

    def place(self, path: str, where: str) -> None:
        self._places[path] = where

    def placed(self, path: str) -> bool:
        """Whether this very path was written."""
        return path in self._places

    def where(self, path: str) -> str:
        """The line of a path, or of the closest thing around it that was written."""
        while path and path not in self._places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self._places.get(path, "")

    def fault(self, path: str, message: str, remedy: str = "") -> None:
        if not self.faulty(path):
            self.faults.append(Fault(path, self.where(path), message, remedy))

    def faulty(self, path: str, *, within: bool = False) -> bool:
        """Whether there is a fault at this path, or anywhere below it."""
        below = (f"{path}.", f"{path}[")
        return any(f.path == path or (within and f.path.startswith(below)) for f in self.faults)

    def warn(self, path: str, message: str) -> None:
        where = self.where(path)
        self.warnings.append(f"{path} ({where}): {message}" if where else f"{path}: {message}")


class Section:
    """A mapping of the file together with what the environment says about the same keys."""

    def __init__(
        self,
        report: Report,
        path: str,
        node: yaml.Node | None,
        overrides: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        self._report = report
        self.path = path
        self._overrides = dict(overrides or {})
        self._nodes: dict[str, yaml.Node] = {}
        self.present = node is not None and not _is_null(node)
        if node is None or _is_null(node):
            return
        report.place(path, _line(node))
        if not isinstance(node, yaml.MappingNode):
            report.fault(path, f"is {_kind(node)}, not a mapping", "write `key: value` lines below it")
            return
        for key_node, value in node.value:
            self._take(key_node, value)

    def _take(self, key_node: yaml.Node, value: yaml.Node) -> None:
        if not isinstance(key_node, yaml.ScalarNode):
            self._report.fault(self.path, "has a key that is not a word", "write `key: value`")
            return
        key = key_node.value
        path = self.at(key)
        if key in self._nodes:
            first = _line(self._nodes[key])
            self._report.fault(path, f"is given twice, first on {first}", f"remove {_line(key_node)}")
            return
        self._nodes[key] = value
        self._report.place(path, _line(key_node))

    def at(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        return key in self._nodes or key in self._overrides

    def node(self, key: str) -> yaml.Node | None:
        return self._nodes.get(key)

    def only(self, keys: Iterable[str]) -> None:
        """A fault for each key that is none of these."""
        known = list(keys)
        for key in self._nodes:
            if key not in known:
                close = difflib.get_close_matches(key, known, 1, 0.6)
                remedy = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
                self._report.fault(self.at(key), "is not a setting", remedy)

    def get(self, key: str, parse: Parse[T], default: T) -> T:
        """The parsed value of a scalar; the default when it is absent, null or faulty."""
        path = self.at(key)
        if key in self._overrides:
            variable, text = self._overrides[key]
            self._report.place(path, variable)
            scalar = Scalar(text, "env", from_env=True)
        else:
            node = self._nodes.get(key)
            if node is None or _is_null(node):
                return default
            if not isinstance(node, yaml.ScalarNode):
                self._report.fault(path, f"is {_kind(node)}", "write a single value")
                return default
            scalar = Scalar(node.value, node.tag.rpartition(":")[2])
        value: T = self._parse(path, scalar, parse, default)
        return value

    def items(self, key: str) -> list[tuple[str, yaml.Node]]:
        """Path and node of each element of a list; empty when it is absent or no list."""
        node = self._nodes.get(key)
        if node is None or _is_null(node):
            return []
        if not isinstance(node, yaml.SequenceNode):
            self._report.fault(self.at(key), f"is {_kind(node)}, not a list", "write `- …` lines below it")
            return []
        found = []
        for index, item in enumerate(node.value):
            path = f"{self.at(key)}[{index}]"
            self._report.place(path, _line(item))
            found.append((path, item))
        return found

    def texts(self, key: str, parse: Parse[T]) -> list[T]:
        """The parsed elements of a list of scalars, without the faulty ones."""
        values: list[T] = []
        for path, item in self.items(key):
            if isinstance(item, yaml.ScalarNode):
                value = self._parse(path, Scalar(item.value, item.tag.rpartition(":")[2]), parse, None)
                if value is not None:
                    values.append(value)
            else:
                self._report.fault(path, f"is {_kind(item)}", "write a single value")
        return values

    def _parse(self, path: str, scalar: Scalar, parse: Parse[T], default: Any) -> Any:
        try:
            return parse(scalar)
        except Wrong as wrong:
            self._report.fault(path, wrong.message, wrong.remedy)
            return default


def compose(text: str, report: Report) -> yaml.Node | None:
    """The file as nodes; None, and a fault, when it is not YAML."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}" if mark else ""
        problem = " ".join(part for part in (error.context, error.problem) if part)
        report.faults.append(Fault("file", where, f"is not YAML: {problem}", "mind the indentation there"))
    except (yaml.YAMLError, RecursionError) as error:
        report.faults.append(Fault("file", "", f"is not YAML: {str(error)[:200]}", ""))
    return None


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return f"the single value {node.value[:40]!r}"
