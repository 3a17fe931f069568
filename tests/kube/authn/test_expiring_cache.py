"""A cache is bounded, and no value outlives its time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.kube.authn.expiring_cache import ExpiringCache


def test_a_value_is_there_until_its_time():
    cache: ExpiringCache[str, int] = ExpiringCache(2)
    cache.put("a", 1, until=10.0)
    assert cache.get("a", 9.9) == 1
    assert cache.get("a", 10.0) is None
    assert len(cache) == 0


def test_the_entry_goes_that_was_not_used_for_the_longest_time():
    cache: ExpiringCache[str, int] = ExpiringCache(2)
    cache.put("a", 1, 10.0)
    cache.put("b", 2, 10.0)
    assert cache.get("a", 0.0) == 1
    cache.put("c", 3, 10.0)
    assert [cache.get(key, 0.0) for key in "abc"] == [1, None, 3]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9), st.integers(0, 20))), st.integers(1, 5))
def test_it_is_bounded_and_has_only_what_was_put_last_and_is_valid(steps, size):
    cache: ExpiringCache[int, int] = ExpiringCache(size)
    written: dict[int, tuple[int, int]] = {}
    for now, (put, key, lasts) in enumerate(steps):
        if put:
            cache.put(key, now, now + lasts)
            written[key] = (now, now + lasts)
        else:
            value = cache.get(key, now)
            assert value is None or (value == written[key][0] and now < written[key][1])
        assert len(cache) <= size
