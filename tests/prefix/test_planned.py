"""The planned blocks against a list of plans, and their bound."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.prefix.planned import PlannedBlocks

ADDRESSES = ("a:1", "b:1", "c:1")
# A chain is named by its conversation and its length, so that chains share beginnings.
chains = st.tuples(st.integers(0, 2), st.integers(0, 5)).map(
    lambda pair: tuple(range(pair[0] * 100, pair[0] * 100 + pair[1]))
)
adds = st.tuples(st.sampled_from(ADDRESSES), chains)


class Plans:
    """A list of the plans whose blocks are kept."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.kept: list[tuple[str, tuple[int, ...]]] = []

    @property
    def blocks(self) -> int:
        return sum(len(chain) for _, chain in self.kept)

    def add(self, address: str, chain: tuple[int, ...]) -> bool:
        fits = self.blocks + len(chain) <= self.limit
        if fits:
            self.kept.append((address, chain))
        return fits

    def match(self, chain: tuple[int, ...]) -> dict[str, int]:
        depths: dict[str, int] = {}
        for address in ADDRESSES:
            here = {block for at, kept in self.kept if at == address for block in kept}
            depth = next((place for place, block in enumerate(chain) if block not in here), len(chain))
            if depth:
                depths[address] = depth
        return depths


@given(st.lists(st.tuples(adds, st.integers(0, 30), chains), max_size=30), st.sampled_from([0, 7, 1_000]))
def test_planned_blocks_equal_a_list_of_plans_on_random_histories(
    history: list[tuple[tuple[str, tuple[int, ...]], int, tuple[int, ...]]], limit: int
) -> None:
    planned, plans = PlannedBlocks(limit), Plans(limit)
    for (address, chain), over, looked_up in history:
        assert planned.add(address, chain) == plans.add(address, chain)
        if over < len(plans.kept):
            planned.remove(*plans.kept.pop(over))
        assert planned.match(looked_up) == plans.match(looked_up)
        assert planned.blocks == plans.blocks
    for plan in plans.kept:
        planned.remove(*plan)
    assert planned.blocks == 0
    assert planned._where == {}


def test_a_plan_that_is_given_up_takes_back_its_own_blocks_only() -> None:
    planned = PlannedBlocks()
    planned.add("a:1", (1, 2, 3))
    planned.add("a:1", (1, 2))
    planned.remove("a:1", (1, 2, 3))
    assert planned.match((1, 2, 3)) == {"a:1": 2}


def test_blocks_over_the_limit_are_not_kept_and_those_within_it_are() -> None:
    planned = PlannedBlocks(limit=4)
    assert planned.add("a:1", (1, 2, 3))
    assert not planned.add("a:1", (4, 5))
    assert planned.add("b:1", (4,))
    assert planned.match((4, 5)) == {"b:1": 1}
