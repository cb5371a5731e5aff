"""Tokens come back as they went out, are never longer than allowed, and cannot be made up."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from raftspine.core.session import MAX_CHARS, Token, decode, encode
from raftspine.errors import InvalidRequest

KEY = b"k" * 32
groups = st.integers(0, 63)
origins = st.builds("{}~{:08x}".format, st.text("spine-12", min_size=1, max_size=12), st.integers(0, 2**32 - 1))
seqs = st.integers(1, 2**40)
tokens = st.builds(
    Token,
    st.dictionaries(groups, st.dictionaries(origins, seqs, min_size=1, max_size=4), max_size=64),
    st.dictionaries(groups, seqs, max_size=64),
    st.sets(groups, max_size=4),
)


def copy(token: Token) -> Token:
    return Token({g: dict(d) for g, d in token.dots.items()}, dict(token.index), set(token.wide))


@given(tokens)
def test_round_trip_loses_nothing_in_silence(token: Token) -> None:
    before = copy(token)
    text = encode(token, KEY)
    assert len(text) <= MAX_CHARS
    assert text.isascii()
    after = decode(text, KEY)
    assert after == token
    assert after.index == before.index
    for group, dots in before.dots.items():
        assert after.needs(group) == dots or group in after.wide
    assert after.wide >= before.wide


@given(tokens, tokens, groups)
def test_merge_needs_what_either_needs(a: Token, b: Token, group: int) -> None:
    merged = copy(a)
    merged.merge(b)
    for side in (a, b):
        assert all(merged.needs(group)[o] >= s for o, s in side.needs(group).items())
        assert merged.index.get(group, 0) >= side.index.get(group, 0)
    either = set(a.needs(group)) | set(b.needs(group))
    assert set(merged.needs(group)) == either


@given(tokens, st.data())
def test_a_changed_character_is_refused(token: Token, data: st.DataObject) -> None:
    text = encode(token, KEY)
    at = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.sampled_from("AZaz09-_=+/ é"))
    assume(other != text[at])
    with pytest.raises(InvalidRequest):
        decode(text[:at] + other + text[at + 1 :], KEY)


@given(st.text(max_size=60))
def test_any_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode(text, KEY)
    assert caught.value.details["field"] == "X-Spine-Session"
