"""What a memory may look like; every refusal names the field."""

from typing import Any

import pytest

from raftspine.core.limits import Limits, check_draft_fields, check_id
from raftspine.errors import InvalidRequest, TooLarge

SMALL = Limits(content_bytes=10, metadata_bytes=20, tags=2, ttl_seconds_max=100)


def check(**fields: Any) -> tuple[str, ...]:
    defaults: dict[str, Any] = {
        "content": "x",
        "agent_id": "",
        "namespace": "",
        "tags": (),
        "importance": "medium",
        "metadata": {},
        "ttl_seconds": None,
    }
    return check_draft_fields(**{**defaults, **fields}, limits=SMALL)


@pytest.mark.parametrize("id", ["a", "a/b/../c", "Grüße, 世界", "%2F", "x" * 255, "é" * 127, " "])
def test_good_ids(id: str) -> None:
    check_id(id)


@pytest.mark.parametrize("id", ["", "x" * 256, "é" * 128, "a\0b", "tab\t", "\x7f", "\x85", "\ud800"])
def test_bad_ids(id: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_id(id)
    assert caught.value.details["field"] == "id"


@pytest.mark.parametrize("content", ["", "1234567890", "ééééé", {"a": [1]}, [], 0, False, 1.5])
def test_good_content(content: Any) -> None:
    check(content=content)


@pytest.mark.parametrize("content", ["12345678901", "éééééé", list(range(9))])
def test_content_is_measured_in_encoded_bytes(content: Any) -> None:
    with pytest.raises(TooLarge) as caught:
        check(content=content)
    assert caught.value.details["field"] == "$.content"
    assert caught.value.details["limit"] == 10


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("content", None),
        ("content", float("nan")),
        ("content", [float("inf")]),
        ("content", {1: "x"}),
        ("content", b"bytes"),
        ("content", 2**64),
        ("content", "\ud800"),
        ("content", ["\udfff"]),
        ("content", deep(65)),
        ("agent_id", "a\nb"),
        ("agent_id", "a" * 129),
        ("agent_id", 7),
        ("namespace", "n" * 201),
        ("tags", "abc"),
        ("tags", ("a", "b", "c")),
        ("importance", "urgent"),
        ("importance", 1.01),
        ("importance", -0.1),
        ("importance", True),
        ("importance", float("nan")),
        ("metadata", ["a"]),
        ("metadata", {"a": float("nan")}),
        ("ttl_seconds", 0),
        ("ttl_seconds", 101),
        ("ttl_seconds", True),
        ("ttl_seconds", 1.5),
    ],
)
def test_refusals_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(**{field: value})
    assert caught.value.details["field"] == f"$.{field}"


@pytest.mark.parametrize("tag", ["", "x" * 65, "a\0", 7, "\ud800"])
def test_a_bad_tag_is_named_by_its_place(tag: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(tags=("good", tag))
    assert caught.value.details["field"] == "$.tags[1]"


def test_tags_come_back_once_each_in_order() -> None:
    assert check(tags=["b", "a", "b"]) == ("b", "a")
    assert check(tags=["é" * 64]) == ("é" * 64,), "64 characters, however many bytes"


def test_metadata_above_its_limit() -> None:
    with pytest.raises(TooLarge) as caught:
        check(metadata={"k": "v" * 20})
    assert caught.value.details["field"] == "$.metadata"


@pytest.mark.parametrize("importance", ["low", "critical", 0, 1, 0.5])
def test_good_importance(importance: Any) -> None:
    check(importance=importance)
