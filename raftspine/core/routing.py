"""Tags decide which machinery keeps a memory; this is the one place where they do.

The rule: among the overrides whose tags a memory carries the strongest wins; none matches, the default
applies; a writer may ask for more than its tags demand and never for less. Without the last half an agent
could write a `critical` memory past the log, and everyone who relies on the tag would be wrong without
being told.
"""

from typing import NamedTuple

from raftspine.errors import InvalidRequest
from raftspine.model import Model, Path

STRENGTH: dict[Model, int] = {
    Model.EVENTUAL: 0,
    Model.READ_YOUR_WRITES: 1,
    Model.CAUSAL: 2,
    Model.STRONG: 3,
}

CONSISTENCY_HEADER = "X-Spine-Consistency"


def parse_model(text: str, field: str = CONSISTENCY_HEADER) -> Model:
    """A model by its name. InvalidRequest naming `field` and the allowed names."""
    try:
        return Model(text)
    except ValueError:
        allowed = [model.value for model in sorted(STRENGTH, key=STRENGTH.__getitem__)]
        raise InvalidRequest(
            f"unknown consistency model {text[:64]!r}; allowed: {', '.join(allowed)}",
            field=field,
            allowed=allowed,
        ) from None


def path_of(model: Model) -> Path:
    """Which machinery provides a model."""
    return Path.STRONG if model is Model.STRONG else Path.RING


class Override(NamedTuple):
    """Memories that carry any of `tags` are kept under `model`."""

    tags: frozenset[str]
    model: Model


class Decision(NamedTuple):
    """Where a write goes. `matched`: the tags that decided it, in the memory's order; `reason`: one sentence."""

    model: Model
    path: Path
    matched: tuple[str, ...]
    reason: str


class Router:
    """The table of overrides and the two questions put to it. Immutable."""

    __slots__ = ("_default", "_special", "default", "overrides")

    def __init__(self, default: Model, overrides: tuple[Override, ...] = ()) -> None:
        self.default = default
        # Strongest first, so the first match is the answer; the sort is stable, hence deterministic.
        self.overrides = tuple(sorted(overrides, key=lambda override: -STRENGTH[override.model]))
        self._special: frozenset[str] = frozenset().union(*(override.tags for override in overrides))
        self._default = Decision(default, path_of(default), (), "no override matches its tags: the default applies")

    def write(self, tags: tuple[str, ...], wish: Model | None = None) -> Decision:
        """Model and path for a write. InvalidRequest(`cannot_weaken`) when `wish` is below what the tags demand."""
        demand = self._default if self._special.isdisjoint(tags) else self._match(tags)
        if wish is None or wish is demand.model:
            return demand
        if STRENGTH[wish] < STRENGTH[demand.model]:
            raise InvalidRequest(
                f"cannot weaken this write to {wish.value}: it needs {demand.model.value} ({demand.reason})",
                field=CONSISTENCY_HEADER,
                code="cannot_weaken",
                required=demand.model.value,
                asked=wish.value,
            )
        return Decision(wish, path_of(wish), demand.matched, f"the request asks for {wish.value}")

    def on_ring(self, tags: tuple[str, ...]) -> Model:
        """The model under which the ring keeps a memory with these tags. Strong ones can be there too, written under
        another configuration; the ring gives them what it gives by default."""
        demand = self._default if self._special.isdisjoint(tags) else self._match(tags)
        return Model.READ_YOUR_WRITES if demand.model is Model.STRONG else demand.model

    def read(self, kept: Model, wish: Model | None = None) -> Model:
        """The model a read is served under: what was asked for, weaker or stronger, else how the memory is kept."""
        return kept if wish is None else wish

    def _match(self, tags: tuple[str, ...]) -> Decision:
        for override in self.overrides:
            matched = tuple(tag for tag in tags if tag in override.tags)
            if matched:
                model = override.model
                names = ", ".join(matched)
                return Decision(model, path_of(model), matched, f"tagged {names}: kept under {model.value}")
        return self._default
