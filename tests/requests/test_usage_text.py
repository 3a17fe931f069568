"""The token usage in a body of which the beginning and the end are kept."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events.exchange import NO_USAGE, TokenUsage
from agent.requests.usage_text import HEAD_BYTES, TAIL_BYTES, ResponseText

USAGE = {"prompt_tokens": 19, "completion_tokens": 20, "prompt_tokens_details": {"cached_tokens": 16}}


def usage(*chunks: bytes) -> TokenUsage:
    text = ResponseText()
    for chunk in chunks:
        text.add(chunk)
    assert text.size == sum(map(len, chunks))
    return text.usage()


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    chunks, place = [], 0
    for size in sizes:
        chunks.append(data[place : place + size])
        place += size
    return [*chunks, data[place:]]


@given(st.integers(0, 60_000), st.lists(st.integers(0, 9_000), max_size=20))
def test_the_usage_at_the_end_is_read_however_the_body_is_cut(padding: int, sizes: list[int]) -> None:
    body = json.dumps({"text": "x" * padding, "usage": USAGE}).encode()
    assert usage(*cut(body, sizes)) == TokenUsage(19, 20, 16)


def test_a_prompt_at_the_beginning_and_a_completion_at_the_end_are_joined() -> None:
    begin = {"message": {"usage": {"input_tokens": 19, "cache_read_input_tokens": 16}}}
    events = [begin, *({"delta": {"text": "y" * 500}} for _ in range(200)), {"usage": {"output_tokens": 20}}]
    assert usage(*(b"data: " + json.dumps(each).encode() + b"\n\n" for each in events)) == TokenUsage(19, 20, 16)


def test_of_several_usages_the_last_one_counts() -> None:
    events = [{"usage": {"prompt_tokens": 19, "completion_tokens": number}} for number in range(1, 4)]
    assert usage(*(json.dumps(each).encode() for each in events)) == TokenUsage(19, 3, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"usage": null}',
        b'{"usage": {"prompt_tokens": "many", "completion_tokens": -1}}',
        json.dumps({"text": '{"prompt_tokens": 1, "completion_tokens": 2}'}).encode(),
        b'{"prompt_tokens": 12',
        b'{"prompt_tokens": ' + b"9" * 40 + b"}",
        b"\x00\xff" * 30_000,
    ],
)
def test_what_is_no_usage_is_none(body: bytes) -> None:
    assert usage(body) == NO_USAGE


def test_a_number_that_is_cut_between_the_kept_parts_is_not_read() -> None:
    key = b'"prompt_tokens":'
    head = b"{" + b" " * (HEAD_BYTES - len(key) - 3) + key
    body = head + b"12345" + b',"b":"' + b"y" * 3 * TAIL_BYTES + b'"}'
    assert body[:HEAD_BYTES].endswith(b":12")
    assert usage(body).prompt is None


@given(st.binary(max_size=3000), st.lists(st.integers(0, 200), max_size=10))
def test_no_body_breaks_it(body: bytes, sizes: list[int]) -> None:
    assert usage(*cut(body, sizes)) == usage(body)
