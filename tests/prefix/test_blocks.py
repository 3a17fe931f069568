"""A chain of block hashes identifies a text block by block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.prefix.blocks import chain, seed

SEED = seed("model", b"")
block_sizes = st.integers(min_value=1, max_value=64)
texts = st.binary(max_size=600)
names = st.text(max_size=8)


def common(left: list[int] | bytes, right: list[int] | bytes) -> int:
    """The length of the common beginning."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


@given(texts, texts, texts, block_sizes)
def test_two_chains_share_exactly_the_leading_blocks_that_the_texts_share(
    beginning: bytes, left: bytes, right: bytes, size: int
) -> None:
    one, other = beginning + left, beginning + right
    shared = min(common(one, other) // size, len(one) // size, len(other) // size)
    first, second = chain(one, size, SEED, 1000), chain(other, size, SEED, 1000)
    assert common(first, second) == shared
    assert not set(first[shared:]) & set(second[shared:])


@given(texts, block_sizes, st.integers(min_value=0, max_value=40))
def test_there_is_one_hash_per_whole_block_up_to_the_limit(text: bytes, size: int, limit: int) -> None:
    hashes = chain(text, size, SEED, limit)
    assert len(hashes) == min(len(text) // size, limit)
    assert hashes == chain(text, size, SEED, 1000)[:limit]
    assert all(0 <= block < 1 << 64 for block in hashes)


@given(texts, block_sizes)
def test_a_longer_text_keeps_the_hashes_of_its_beginning(text: bytes, size: int) -> None:
    short = chain(text, size, SEED, 1000)
    assert chain(text + b"more", size, SEED, 1000)[: len(short)] == short


def test_equal_blocks_at_different_places_have_different_hashes() -> None:
    hashes = chain(b"same" * 100, 4, SEED, 1000)
    assert len(set(hashes)) == 100


@given(names, st.binary(max_size=8), names, st.binary(max_size=8))
def test_another_model_or_salt_is_another_seed_and_shares_no_block(
    model: str, salt: bytes, other_model: str, other_salt: bytes
) -> None:
    one, other = seed(model, salt), seed(other_model, other_salt)
    same = (model, salt) == (other_model, other_salt)
    assert (one == other) is same
    text = b"x" * 256
    assert bool(set(chain(text, 64, one, 8)) & set(chain(text, 64, other, 8))) is same


def test_model_and_salt_are_delimited() -> None:
    assert seed("ab", b"c") != seed("a", b"bc")
    assert seed("a\x00b", b"") != seed("a", b"b")


def test_a_model_name_may_contain_a_lone_surrogate_as_in_json() -> None:
    assert len({seed(model, b"") for model in ("\ud800", "\udc00", "?", "")}) == 4


@pytest.mark.parametrize("size", [0, -1])
def test_a_block_of_no_bytes_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="at least one byte"):
        chain(b"text", size, SEED, 10)


def test_hashes_are_the_same_in_every_process() -> None:
    assert chain(b"a" * 64 + b"b" * 64 + b"c", 64, seed("m", b"s"), 10) == [0xC4FF40905C1D82D7, 0xF425BF51F4B36D9A]
