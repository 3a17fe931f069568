"""The prefix index against a plain model, and its bounds."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from agent.prefix.blocks import chain
from agent.prefix.index import SHARED_CONTINUATIONS, PrefixIndex

ADDRESSES = [f"10.0.0.{number}:8000" for number in range(1, 7)]
DEFAULT_CAPACITY = 12

addresses = st.sampled_from(ADDRESSES)
# Few letters and short texts, so that chains share beginnings and evict each other.
chains = st.text("ab", max_size=9).map(lambda text: chain(text.encode(), 1, b"", 100))
capacities = st.integers(min_value=-1, max_value=20)


class Model:
    """A list of blocks per address, the oldest first."""

    def __init__(self) -> None:
        self.lists: dict[str, list[int]] = {}
        self.capacities: dict[str, int] = {}

    def record(self, address: str, blocks: list[int]) -> None:
        held = self.lists.setdefault(address, [])
        for block in reversed(blocks):
            if block in held:
                held.remove(block)
            held.append(block)
        self.trim(address)

    def trim(self, address: str) -> None:
        held = self.lists.setdefault(address, [])
        del held[: max(0, len(held) - self.capacities.get(address, DEFAULT_CAPACITY))]

    def remove(self, address: str, blocks: list[int]) -> None:
        held = self.lists.get(address, [])
        held[:] = [block for block in held if block not in blocks]

    def depth(self, address: str, blocks: list[int]) -> int:
        held = self.lists.get(address, [])
        return next((place for place, block in enumerate(blocks) if block not in held), len(blocks))


class IndexAgainstModel(RuleBasedStateMachine):
    """After any sequence of calls the index gives the same results as the model."""

    recorded = Bundle("recorded")

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(DEFAULT_CAPACITY)
        self.model = Model()

    @rule(address=addresses, blocks=recorded, start=st.integers(0, 9))
    def remove(self, address: str, blocks: list[int], start: int) -> None:
        self.index.remove(address, blocks[start:])
        self.model.remove(address, blocks[start:])

    @rule(address=addresses, blocks=recorded)
    def holds(self, address: str, blocks: list[int]) -> None:
        for block in blocks:
            assert self.index.holds(address, block) == (block in self.model.lists.get(address, []))

    @rule(target=recorded, address=addresses, blocks=chains)
    def record(self, address: str, blocks: list[int]) -> list[int]:
        self.index.record(address, blocks)
        self.model.record(address, blocks)
        return blocks

    @rule(address=addresses, blocks=consumes(recorded))
    def record_again(self, address: str, blocks: list[int]) -> None:
        self.index.record(address, blocks)
        self.model.record(address, blocks)

    @rule(address=addresses, capacity=capacities)
    def resize(self, address: str, capacity: int) -> None:
        self.index.resize(address, capacity)
        self.model.capacities[address] = max(1, capacity)
        self.model.trim(address)

    @rule(address=addresses)
    def clear(self, address: str) -> None:
        capacity = self.index.capacity(address)
        self.index.clear(address)
        self.model.lists.pop(address, None)
        assert (self.index.blocks(address), self.index.capacity(address)) == (0, capacity)

    @rule(address=addresses)
    def forget(self, address: str) -> None:
        self.index.forget(address)
        self.model.lists.pop(address, None)
        self.model.capacities.pop(address, None)
        assert self.index.blocks(address) == 0
        assert self.index.capacity(address) == DEFAULT_CAPACITY

    @rule(blocks=chains | recorded, wanted=st.lists(addresses))
    def match(self, blocks: list[int], wanted: list[str]) -> None:
        assert self.index.match(blocks, wanted) == [self.model.depth(address, blocks) for address in wanted]

    @invariant()
    def holds_what_the_model_holds_and_no_more(self) -> None:
        for address in ADDRESSES:
            held = self.model.lists.get(address, [])
            assert self.index.blocks(address) == len(held) <= self.index.capacity(address)
        assert len(self.index) == len({block for held in self.model.lists.values() for block in held})


TestIndexAgainstModel = IndexAgainstModel.TestCase
TestIndexAgainstModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)

steps = st.lists(st.tuples(addresses, chains), max_size=60)


@given(steps, st.integers(min_value=1, max_value=15))
def test_the_rest_of_an_evicted_chain_is_always_its_beginning(work: list[tuple[str, list[int]]], capacity: int) -> None:
    index = PrefixIndex(capacity)
    for address, blocks in work:
        index.record(address, blocks)
    for address in ADDRESSES:
        for _, blocks in work:
            depth = index.match(blocks, [address])[0]
            beyond = [index.match(blocks[: place + 1], [address])[0] for place in range(len(blocks))]
            assert beyond == [min(place + 1, depth) for place in range(len(blocks))]


@given(steps, st.integers(min_value=0, max_value=30))
def test_all_endpoints_together_never_hold_more_than_the_bound(work: list[tuple[str, list[int]]], limit: int) -> None:
    index = PrefixIndex(10**9, max_blocks=limit)
    for address, blocks in work:
        index.record(address, blocks)
        held = [index.blocks(address) for address in ADDRESSES]
        assert sum(held) <= limit
        assert len(index) <= sum(held)
        for other in ADDRESSES:
            assert index.match(blocks, [other])[0] <= index.blocks(other)


def test_an_endpoint_below_its_share_loses_no_block_to_one_that_fills_the_index() -> None:
    index = PrefixIndex(10**9, max_blocks=100)
    small = chain(b"s" * 30, 1, b"", 100)
    index.record("small:1", small)
    for number in range(50):
        index.record("greedy:1", chain(b"%03d" % number + b"g" * 20, 1, b"", 100))
    assert index.match(small, ["small:1"]) == [30]
    assert index.blocks("greedy:1") == 70


def test_a_new_endpoint_gets_its_share_from_those_above_theirs() -> None:
    index = PrefixIndex(10**9, max_blocks=100)
    index.record("first:1", chain(b"f" * 100, 1, b"", 100))
    late = chain(b"l" * 40, 1, b"", 100)
    index.record("late:1", late)
    assert index.match(late, ["first:1", "late:1"]) == [0, 40]
    assert index.match(chain(b"f" * 100, 1, b"", 100), ["first:1", "late:1"]) == [60, 0]


def test_a_new_endpoint_inherits_no_block_of_a_forgotten_one() -> None:
    index = PrefixIndex()
    blocks = chain(b"prompt " * 9, 7, b"", 100)
    index.record("old:1", blocks)
    index.record("stays:1", blocks[:4])
    index.forget("old:1")
    index.record("new:1", chain(b"another", 7, b"", 100))
    assert index.match(blocks, ["old:1", "stays:1", "new:1"]) == [0, 4, 0]
    assert len(index) == 4 + 1


def test_the_deepest_block_of_the_oldest_prompt_is_evicted_first() -> None:
    index = PrefixIndex(6)
    oldest, newest = chain(b"aaaa", 1, b"", 9), chain(b"bbb", 1, b"", 9)
    index.record("a:1", oldest)
    index.record("a:1", newest)
    assert index.match(oldest, ["a:1"]) == [3]
    assert index.match(newest, ["a:1"]) == [3]


def test_a_record_keeps_a_prefix_from_eviction_and_a_match_alone_does_not() -> None:
    index = PrefixIndex(4)
    used, idle = chain(b"uu", 1, b"", 9), chain(b"ii", 1, b"", 9)
    index.record("a:1", used)
    index.record("a:1", idle)
    index.record("a:1", used)
    index.match(idle, ["a:1"])
    index.record("a:1", chain(b"nn", 1, b"", 9))
    assert index.match(used, ["a:1"]) == [2]
    assert index.match(idle, ["a:1"]) == [0]


def test_of_a_prompt_longer_than_the_cache_the_beginning_is_kept() -> None:
    index = PrefixIndex(5)
    blocks = chain(b"0123456789", 1, b"", 100)
    index.record("a:1", blocks)
    assert index.match(blocks, ["a:1"]) == [5]


def test_an_empty_chain_or_an_unknown_address_matches_no_block() -> None:
    index = PrefixIndex()
    assert index.match([], ["a:1", "b:1"]) == [0, 0]
    assert index.match([1, 2], []) == []
    index.forget("a:1")
    index.record("a:1", [])
    assert index.match([1], ["a:1"]) == [0]
    assert len(index) == 0


def test_a_prefix_that_enough_prompts_continue_differently_is_shared() -> None:
    index = PrefixIndex()
    for number in range(SHARED_CONTINUATIONS):
        assert not index.shared([1, 2, 3, 90], 3)
        index.record("ab"[number % 2] + ":1", [1, 2, 3, 10 + number])
    assert index.shared([1, 2, 3, 90], 3)
    assert not index.shared([1, 2, 3, 90], 2)
    assert not index.shared([9], 0)


def test_the_same_prompt_again_is_no_other_continuation() -> None:
    index = PrefixIndex()
    for _ in range(10):
        index.record("a:1", [1, 2, 3, 10])
    assert not index.shared([1, 2, 3, 90], 3)


def test_a_conversation_continues_its_last_prompt_and_shares_nothing() -> None:
    index = PrefixIndex()
    for turns in range(2, 12):
        chain = list(range(turns * 3))
        assert not index.shared(chain, max(index.match(chain, ["a:1", "b:1"])))
        index.record("ab"[turns % 2] + ":1", chain)


def test_prompts_after_a_shared_beginning_are_conversations_of_their_own() -> None:
    index = PrefixIndex()
    for who in range(SHARED_CONTINUATIONS):
        index.record("a:1", [1, 2, 100 + who])
    index.record("a:1", [1, 2, 100, 101, 200])
    assert not index.shared([1, 2, 100, 101, 200, 300], 5)
    assert index.shared([1, 2, 999], 2)


def test_an_evicted_prefix_is_not_shared_any_more() -> None:
    index = PrefixIndex()
    for number in range(SHARED_CONTINUATIONS):
        index.record("a:1", [1, 10 + number])
    assert index.shared([1, 90], 1)
    index.forget("a:1")
    index.record("a:1", [1, 10])
    assert not index.shared([1, 90], 1)


@given(st.lists(st.tuples(st.sampled_from(["a:1", "b:1"]), st.lists(st.integers(0, 5), max_size=5)), max_size=30))
def test_marks_are_kept_for_blocks_of_the_index_only(records: list[tuple[str, list[int]]]) -> None:
    index = PrefixIndex(default_capacity_blocks=6)
    for address, text in records:
        # As `agent.prefix.blocks.chain`: a block is identified by all of the text up to its end.
        index.record(address, [hash(tuple(text[: end + 1])) for end in range(len(text))])
        assert index._ends | index._continuations.keys() <= index._where.keys()
        assert not index._ends & index._continuations.keys()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True))))
def test_an_index_that_is_restored_from_another_one_finds_what_that_one_finds(
    records: list[tuple[str, list[int]]],
) -> None:
    one, other = PrefixIndex(20), PrefixIndex(20)
    for address, blocks in records:
        one.record(address, blocks)
    for address, blocks in one.newest(1_000).items():
        other.restore(address, blocks)
    for _, blocks in records:
        assert other.match(blocks, "ab") == one.match(blocks, "ab")
    assert [other.blocks(address) for address in "ab"] == [one.blocks(address) for address in "ab"]


def test_the_newest_blocks_are_the_beginnings_of_the_last_prompts_and_each_address_has_a_share() -> None:
    index = PrefixIndex()
    index.record("a", [1, 2, 3])
    index.record("a", [4, 5, 6])
    index.record("b", [7, 8, 9])
    assert index.newest(4) == {"a": [5, 4], "b": [8, 7]}
    assert PrefixIndex().newest(4) == {}


def test_blocks_are_restored_only_where_nothing_is_known_and_within_the_capacity() -> None:
    index = PrefixIndex(2)
    index.restore("a", [3, 2, 1])
    assert index.match([1, 2, 3], "a") == [2]
    index.restore("a", [9])
    assert not index.holds("a", 9)
