"""Text, tokens and blocks are the same thing in three forms."""

from __future__ import annotations

import itertools
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.emulator.text import BEGIN, END, Voice, block_hashes, chat_tokens, detokenize, tokenize

TEXT = st.text(st.characters(codec="utf-8"))


@given(TEXT)
def test_text_comes_back_out_of_its_tokens_and_a_token_is_four_bytes(text):
    tokens = tokenize(text)
    assert detokenize(tokens) == text
    assert len(tokens) == -(-len(text.encode()) // 4)


@given(TEXT)
def test_special_tokens_are_never_those_of_text(text):
    assert not {token & 0xFF for token in tokenize(text)} & {0xFF}
    assert BEGIN & 0xFF == END & 0xFF == 0xFF


@given(TEXT, TEXT, TEXT)
def test_a_conversation_begins_with_the_tokens_of_its_earlier_turns(system, question, more):
    first = chat_tokens([("system", system), ("user", question)])
    answer = Voice(0).text(5, 0, 9)
    second = chat_tokens([("system", system), ("user", question), ("assistant", answer), ("user", more)])
    known = first + tokenize(answer)
    assert second[: len(known)] == known


@given(st.lists(st.integers(0, 9), max_size=60), st.lists(st.integers(0, 9), max_size=60), st.integers(1, 8))
def test_blocks_are_shared_exactly_as_far_as_whole_blocks_agree(one, other, size):
    first, second = (block_hashes(array("I", tokens), size) for tokens in (one, other))
    assert len(first) == len(one) // size
    agree = 0
    while agree < min(len(one), len(other)) and one[agree] == other[agree]:
        agree += 1
    shared = sum(1 for a, b in zip(first, second, strict=False) if a == b)
    assert shared == agree // size
    assert first[:shared] == second[:shared]


def test_adapter_and_salt_part_blocks_of_equal_text():
    tokens = tokenize("the same text" * 20)
    chains = [block_hashes(tokens, 16, lora, salt)[0] for lora, salt in (("", ""), ("a", ""), ("", "a"), ("b", "a"))]
    assert len(set(chains)) == 4


@pytest.mark.parametrize("parts", [(0, 7, 20), (0, 8191, 8193, 20_000)])
def test_an_answer_in_pieces_is_the_whole_answer(parts):
    voice = Voice(3)
    start = voice.start(tokenize("prompt"), 0)
    pieces = "".join(voice.text(start, a, b) for a, b in itertools.pairwise(parts))
    assert pieces == voice.text(start, 0, parts[-1])
    assert len(pieces) == 4 * parts[-1]
