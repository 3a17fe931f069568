"""Names that are pinned keep labels of their own, whatever else is counted; the number of labels is bounded."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from agent.instruments.label_limiter import NAME_LENGTH, OTHER, LabelLimiter


class Limiter(LabelLimiter):
    """A limiter whose listed names the test sets, and the labels whose series it removed."""

    def __init__(self, limit: int, unpinned: int = 0, listed: Iterable[str] = ()) -> None:
        self.listed_names = set(listed)
        self.in_use: set[str] = set()
        self.removed: list[str] = []
        super().__init__(
            limit, unpinned, lambda name: name in self.listed_names, lambda group: group == "unlisted", self._remove
        )

    def _remove(self, label: str) -> bool:
        if label in self.in_use:
            return False
        self.removed.append(label)
        return True


def test_a_thousand_unknown_names_share_other_and_displace_no_listed_name_that_comes_later() -> None:
    label = Limiter(5, unpinned=3)
    assert {label(f"no-such-{number}", "pool") for number in range(1000)} == {OTHER}
    label.listed_names = {"real", "adapter"}
    assert (label("real", "pool"), label("adapter", "pool")) == ("real", "adapter")


def test_where_nothing_is_listed_the_first_few_names_have_labels_of_their_own() -> None:
    label = Limiter(5, unpinned=2)
    assert [label(name, "unlisted") for name in ("a", "b", "c", "a")] == ["a", "b", OTHER, "a"]
    label.listed_names = {"d"}
    assert label("d", "unlisted") == "d"


def test_a_server_that_lists_a_hundred_thousand_names_has_labels_for_those_that_are_requested_up_to_the_limit() -> None:
    label = Limiter(10, listed=map(str, range(100_000)))
    labels = [label(str(number)) for number in range(99_000, 100_000)]
    assert labels[:10] == [str(number) for number in range(99_000, 99_010)]
    assert set(labels[10:]) == {OTHER}
    assert label.removed == []


def test_a_declared_name_has_its_own_label_even_where_listed_ones_have_taken_every_place() -> None:
    label = Limiter(2, listed=("a", "b"))
    assert [label(name) for name in "ab"] == ["a", "b"]
    label.declare(["c", "d"])
    assert [label(name) for name in "abcd"] == list("abcd")


def test_a_name_that_is_not_listed_any_more_keeps_its_label_until_a_listed_one_needs_the_place() -> None:
    label = Limiter(2, listed=("old", "stays"))
    assert [label(name) for name in ("old", "stays")] == ["old", "stays"]
    label.listed_names = {"stays", "new"}
    assert label("old") == "old"
    assert (label("new"), label.removed) == ("new", ["old"])
    assert label("old") == OTHER


def test_a_place_whose_series_are_in_use_is_not_freed() -> None:
    label = Limiter(1, listed=("old",))
    label("old")
    label.listed_names, label.in_use = {"new"}, {"old"}
    assert label("new") == OTHER
    label.in_use = set()
    assert label("new") == "new"


def test_adapters_may_come_and_go_for_ever() -> None:
    label = Limiter(10)
    for number in range(1000):
        label.listed_names = {f"adapter-{number}", "base"}
        assert label(f"adapter-{number}") == f"adapter-{number}"
        assert label("base") == "base"
    assert len(label.removed) >= 1000 - 10


def test_a_name_that_is_declared_no_more_gives_its_place_to_a_listed_one() -> None:
    label = Limiter(1, listed=("listed",))
    label.declare(["declared"])
    label.declare([])
    assert label("declared") == "declared"
    assert (label("listed"), label.removed) == ("listed", ["declared"])


def test_an_empty_name_stays_empty_and_a_long_one_is_other() -> None:
    long = "m" * (NAME_LENGTH + 1)
    label = Limiter(5, unpinned=5, listed=(long,))
    label.declare([long, ""])
    assert (label("", "unlisted"), label(long, "unlisted")) == ("", OTHER)


names = st.text(max_size=3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("count"), names, st.sampled_from(["", "unlisted"])),
        st.tuples(st.just("list"), st.frozensets(names, max_size=6)),
        st.tuples(st.just("declare"), st.frozensets(names, max_size=3)),
    )
)


@given(script=steps, limit=st.integers(0, 3), unpinned=st.integers(0, 2))
def test_whatever_is_counted_listed_and_declared_the_labels_stay_within_their_bound(
    script: list[tuple[object, ...]], limit: int, unpinned: int
) -> None:
    label = Limiter(limit, unpinned)
    shown: set[str] = set()
    declared: frozenset[str] = frozenset()
    ever_declared: set[str] = set()
    for what, *arguments in script:
        if what == "list":
            label.listed_names = set(arguments[0])  # type: ignore[call-overload]
        elif what == "declare":
            declared = arguments[0]  # type: ignore[assignment]
            ever_declared |= declared
            label.declare(declared)
        else:
            name, group = str(arguments[0]), str(arguments[1])
            given_label = label(name, group)
            assert given_label in (name, OTHER) or "?" in given_label
            if name in declared:
                assert given_label == name or "?" in given_label
            shown.add(given_label)
        shown -= {*label.removed}
        label.removed.clear()
    assert len(shown - {OTHER, ""}) <= limit + unpinned + len(ever_declared)
