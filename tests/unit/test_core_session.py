"""Tokens by example: size, foreign ones, and what happens when one is full."""

import pytest

from raftspine.core.session import MAX_CHARS, Token, decode, encode
from raftspine.errors import InvalidRequest

KEY, OTHER = b"k" * 32, b"o" * 32


def test_sixty_four_groups_of_three_origins_fit() -> None:
    token = Token(
        {g: {f"spine-{i}~0a1b2c3d": 2**23 + g for i in range(3)} for g in range(64)},
        {g: 2**23 + g for g in range(64)},
    )
    text = encode(token, KEY)
    assert len(text) <= MAX_CHARS
    assert not token.full
    assert decode(text, KEY) == token


def test_what_does_not_fit_becomes_wide_and_is_said_to_be() -> None:
    token = Token({g: {f"a-node-with-a-long-name-{g}-{i}~0a1b2c3d": 9 for i in range(3)} for g in range(64)})
    token.logged(5, 77)
    text = encode(token, KEY)
    assert len(text) <= MAX_CHARS
    after = decode(text, KEY)
    assert after.full
    assert after.index == {5: 77}
    assert all(bool(after.needs(g)) != (g in after.wide) for g in range(64))


def test_foreign_damaged_and_padded_tokens_are_refused() -> None:
    text = encode(Token({1: {"n~1": 2}}), KEY)
    for bad in (
        encode(Token({1: {"n~1": 2}}), OTHER),
        text[:-1],
        text + "=",
        text + "A",
        "",
        "é",
        "!" * 8,
        "A" * 2000,
    ):
        with pytest.raises(InvalidRequest) as caught:
            decode(bad, KEY)
        assert caught.value.code == "invalid_request"
        assert caught.value.details["field"] == "X-Spine-Session"


def test_pruning_forgets_what_everybody_has() -> None:
    token = Token()
    token.wrote(1, "n~1", 5)
    token.wrote(1, "n~1", 3)
    token.wrote(1, "m~1", 9)
    token.wrote(2, "n~1", 1)
    token.prune(lambda group, origin, seq: origin == "n~1")
    assert token.dots == {1: {"m~1": 9}}
    assert token.needs(2) == {}
