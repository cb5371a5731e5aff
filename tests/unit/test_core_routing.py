"""The router's table, row by row."""

import pytest

from raftspine.core.routing import Override, Router, parse_model
from raftspine.errors import InvalidRequest
from raftspine.model import Model, Path

ROUTER = Router(
    Model.READ_YOUR_WRITES,
    (
        Override(frozenset({"analytics", "metric"}), Model.EVENTUAL),
        Override(frozenset({"thread"}), Model.CAUSAL),
        Override(frozenset({"critical", "lock"}), Model.STRONG),
    ),
)


@pytest.mark.parametrize(
    ("tags", "model", "path", "matched"),
    [
        ((), Model.READ_YOUR_WRITES, Path.RING, ()),
        (("note", "Critical"), Model.READ_YOUR_WRITES, Path.RING, ()),
        (("metric",), Model.EVENTUAL, Path.RING, ("metric",)),
        (("metric", "thread"), Model.CAUSAL, Path.RING, ("thread",)),
        (("lock", "metric", "critical"), Model.STRONG, Path.STRONG, ("lock", "critical")),
    ],
)
def test_the_strongest_match_decides(
    tags: tuple[str, ...], model: Model, path: Path, matched: tuple[str, ...]
) -> None:
    decision = ROUTER.write(tags)
    assert decision[:3] == (model, path, matched)
    assert decision.reason


@pytest.mark.parametrize(
    ("tags", "wish"),
    [((), Model.EVENTUAL), (("thread",), Model.READ_YOUR_WRITES), (("critical",), Model.CAUSAL)],
)
def test_a_write_is_never_weakened(tags: tuple[str, ...], wish: Model) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ROUTER.write(tags, wish)
    assert caught.value.code == "cannot_weaken"
    assert caught.value.details["field"] == "X-Spine-Consistency"


def test_a_write_may_be_strengthened() -> None:
    assert ROUTER.write(("metric",), Model.STRONG)[:2] == (Model.STRONG, Path.STRONG)
    assert ROUTER.write((), Model.CAUSAL)[:2] == (Model.CAUSAL, Path.RING)
    assert ROUTER.write(("critical",), Model.STRONG).matched == ("critical",)


def test_a_read_follows_the_wish() -> None:
    assert ROUTER.read(Model.STRONG) is Model.STRONG
    assert ROUTER.read(Model.STRONG, Model.EVENTUAL) is Model.EVENTUAL
    assert ROUTER.read(Model.EVENTUAL, Model.STRONG) is Model.STRONG


def test_an_unknown_model_is_refused_with_the_known_ones() -> None:
    assert parse_model("causal") is Model.CAUSAL
    with pytest.raises(InvalidRequest) as caught:
        parse_model("Strong")
    assert caught.value.details["allowed"] == ["eventual", "read-your-writes", "causal", "strong"]
