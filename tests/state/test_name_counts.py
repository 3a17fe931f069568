"""The names that any endpoint of a pool reports, and those that all report."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.state.name_counts import NameCounts


@given(st.lists(st.tuples(st.sampled_from("abc"), st.frozensets(st.sampled_from("xyz"))), max_size=30))
def test_names_are_those_of_the_last_set_of_each_endpoint(sets: list[tuple[str, frozenset[str]]]) -> None:
    names, last = NameCounts(), dict[str, frozenset[str]]()
    assert names.anywhere == names.everywhere == frozenset()
    for address, these in sets:
        names.set(address, these)
        last[address] = these
        assert names.anywhere == frozenset().union(*last.values())
        assert names.everywhere == frozenset("xyz").intersection(*last.values())
