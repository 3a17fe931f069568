"""Text, tokens and block hashes are consistent."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.emulator.text import BEGIN, END, TextGenerator, block_hashes, chat_tokens, detokenize, tokenize

TEXT = st.text(st.characters(codec="utf-8"))


@given(TEXT)
def test_tokens_detokenize_to_their_text_and_a_token_is_four_bytes(text):
    tokens = tokenize(text)
    assert detokenize(tokens) == text
    assert len(tokens) == -(-len(text.encode()) // 4)


@given(TEXT)
def test_special_tokens_never_occur_in_text(text):
    assert not {token & 0xFF for token in tokenize(text)} & {0xFF}
    assert BEGIN & 0xFF == END & 0xFF == 0xFF


@given(TEXT, TEXT, TEXT)
def test_a_conversation_begins_with_the_tokens_of_its_previous_turns(system, question, more):
    first = chat_tokens([("system", system), ("user", question)])
    answer = TextGenerator(0).text(5, 0, 9)
    second = chat_tokens([("system", system), ("user", question), ("assistant", answer), ("user", more)])
    known = first + tokenize(answer)
    assert second[: len(known)] == known


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(0, 9), max_size=60), st.integers(1, 8))
def test_blocks_are_shared_exactly_as_far_as_whole_blocks_are_equal(one, other, size):
    first, second = (block_hashes(array("I", tokens), size) for tokens in (one, other))
    assert len(first) == len(one) // size
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    shared = sum(1 for a, b in zip(first, second, strict=False) if a == b)
    assert shared == common // size
    assert first[:shared] == second[:shared]


def test_blocks_of_equal_text_differ_by_adapter_and_salt():
    tokens = tokenize("the same text" * 20)
    chains = [block_hashes(tokens, 16, lora, salt)[0] for lora, salt in (("", ""), ("a", ""), ("", "a"), ("b", "a"))]
    assert len(set(chains)) == 4


@pytest.mark.parametrize("parts", [(0, 7, 20), (0, 8191, 8193, 20_000)])
def test_the_pieces_of_an_answer_make_the_whole_answer(parts):
    generator = TextGenerator(3)
    start = generator.start(tokenize("prompt"), 0)
    pieces = "".join(generator.text(start, a, b) for a, b in itertools.pairwise(parts))
    assert pieces == generator.text(start, 0, parts[-1])
    assert len(pieces) == 4 * parts[-1]
