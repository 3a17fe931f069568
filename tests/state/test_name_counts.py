"""What some and what all endpoints of a pool tell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.state.names import Names


@given(st.lists(st.tuples(st.sampled_from("abc"), st.frozensets(st.sampled_from("xyz"))), max_size=30))
def test_names_are_those_of_the_sets_that_were_told_last(told: list[tuple[str, frozenset[str]]]) -> None:
    names, last = Names(), dict[str, frozenset[str]]()
    assert names.anywhere == names.everywhere == frozenset()
    for address, these in told:
        names.tell(address, these)
        last[address] = these
        assert names.anywhere == frozenset().union(*last.values())
        assert names.everywhere == frozenset("xyz").intersection(*last.values())
