"""The tally against its brute-force twin: try every way in which the silent members could still vote."""

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from raftspine.core.quorum import Tally, majority, read_quorum

MEMBERS = "abcd"
votes = st.lists(st.tuples(st.sampled_from(MEMBERS), st.booleans()), max_size=10)


@given(st.integers(1, 4), votes)
def test_the_verdict_is_the_same_as_trying_everything(needed: int, said: list[tuple[str, bool]]) -> None:
    tally = Tally(needed, len(MEMBERS))
    first: dict[str, bool] = {}
    for who, agrees in said:
        (tally.ack if agrees else tally.fail)(who)
        first.setdefault(who, agrees)
    silent = len(MEMBERS) - len(first)
    ends = {sum(first.values()) + sum(rest) >= needed for rest in product([True, False], repeat=silent)}
    if sum(first.values()) >= needed:
        assert tally.verdict() == "reached"
    else:
        assert tally.verdict() == ("open" if True in ends else "impossible")


@given(st.integers(1, 9))
def test_quorums_meet(n: int) -> None:
    assert 2 * majority(n) > n
    assert 2 * (majority(n) - 1) <= n
    for w in range(1, n + 1):
        assert w + read_quorum(n, w) == n + 1
