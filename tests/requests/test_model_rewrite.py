"""Another model in a body: the value of `model` changes, and no other byte."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.requests.model_rewrite import rewrite_model


def changed(body: bytes, model: str = "new") -> bytes:
    rewritten = rewrite_model(body, model)
    assert rewritten is not None
    return rewritten.body


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"model":"m","n":1}', b'{"model":"new","n":1}'),
        (b' {\n "n" : 1.0e2 , "model" :\t"m" }\n', b' {\n "n" : 1.0e2 , "model" :\t"new" }\n'),
        (b'{"a":{"model":"in"},"model":"m"}', b'{"a":{"model":"in"},"model":"new"}'),
        (b'{"prompt":"\\"model\\":\\"x\\"","model":"m"}', b'{"prompt":"\\"model\\":\\"x\\"","model":"new"}'),
        (b'{"a":"model","model":"m"}', b'{"a":"model","model":"new"}'),
        (b'{"model":"a","model":"b"}', b'{"model":"new","model":"new"}'),
        (b'{"m\\u006fdel":"m"}', b'{"m\\u006fdel":"new"}'),
        (b'{"model":"a\\"b\\\\"}', b'{"model":"new"}'),
        (b'{"model":null,"n":1}', b'{"model":"new","n":1}'),
        (b'{"model":7}', b'{"model":"new"}'),
        (b'{"model":["a",{"model":"b"}],"n":1}', b'{"model":"new","n":1}'),
        (b'{"model":{}}', b'{"model":"new"}'),
        (b"{}", b'{"model":"new"}'),
        (b'{ "n":1}', b'{"model":"new", "n":1}'),
        (b'{"n":12345678901234567890123,"model":"m"}', b'{"n":12345678901234567890123,"model":"new"}'),
    ],
)
def test_the_top_level_model_is_replaced_wherever_it_is_written(body: bytes, expected: bytes) -> None:
    assert changed(body) == expected


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"model"', b"\xff", b'{"model":"m"', b'{"model":"\xff"}', b"null"])
def test_what_is_no_object_is_not_changed(body: bytes) -> None:
    assert rewrite_model(body, "new") is None


@pytest.mark.parametrize(("body", "requested"), [(b'{"model":"m"}', "m"), (b"{}", ""), (b'{"model":1}', "")])
def test_the_model_that_was_requested_is_kept(body: bytes, requested: str) -> None:
    rewritten = rewrite_model(body, "new")
    assert rewritten is not None
    assert rewritten.requested == requested


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.just("model"), inner, max_size=4),
    max_leaves=12,
)


@given(
    document=st.dictionaries(st.text() | st.just("model"), values, max_size=6),
    model=st.text(min_size=1),
    escaped=st.booleans(),
    indent=st.sampled_from([None, 0, 2]),
)
def test_any_document_is_the_same_but_for_its_model(
    document: dict[str, Any], model: str, escaped: bool, indent: int | None
) -> None:
    body = json.dumps(document, ensure_ascii=escaped, indent=indent).encode()
    assert json.loads(changed(body, model)) == {**document, "model": model}


def test_a_body_of_a_megabyte_of_tokens_is_changed() -> None:
    document = {"prompt": list(range(150_000)), "model": "m"}
    assert json.loads(changed(json.dumps(document).encode())) == {**document, "model": "new"}
