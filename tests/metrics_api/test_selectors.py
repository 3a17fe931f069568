"""Label selectors are read as Kubernetes reads them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serve.metrics_api.selectors import (
    MAX_SELECTOR_BYTES,
    BadSelector,
    Operator,
    Requirement,
    parse_selector,
)

KEYS = st.sampled_from(["app", "tier", "llm-d.ai/role", "in", "notin", "a.b_c", "X"])
VALUES = st.sampled_from(["", "a", "chat", "gpt-4.1", "1", "23", "notin", "in"])
LABELS = st.dictionaries(KEYS, VALUES, max_size=5)
BLANKS = st.sampled_from(["", " ", "  ", "\t"])


@st.composite
def requirements(draw: st.DrawFn) -> tuple[str, object]:
    """The text of a requirement, and what it says about labels."""
    key, values = draw(KEYS), draw(st.lists(VALUES, min_size=1, max_size=3))
    one, blank = values[0], draw(BLANKS)
    listed = ",".join(blank + value for value in values)
    return draw(
        st.sampled_from(
            [
                (f"{key}{blank}={blank}{one}", lambda labels: labels.get(key) == one),
                (f"{key}{blank}=={blank}{one}", lambda labels: labels.get(key) == one),
                (f"{key}{blank}!={blank}{one}", lambda labels: labels.get(key) != one),
                (f"{key} in{blank}({listed}{blank})", lambda labels: labels.get(key) in values),
                (f"{key} notin{blank}({listed})", lambda labels: labels.get(key) not in values),
                (f"{blank}{key}", lambda labels: key in labels),
                (f"{blank}!{blank}{key}", lambda labels: key not in labels),
                (f"{key}>5", lambda labels: labels.get(key, "").isdigit() and int(labels[key]) > 5),
                (f"{key} < 5", lambda labels: labels.get(key, "").isdigit() and int(labels[key]) < 5),
            ]
        )
    )


@given(st.lists(requirements(), max_size=4), LABELS)
def test_a_selector_matches_labels_that_satisfy_all_its_requirements(parts, labels):
    selector = parse_selector(",".join(text for text, _ in parts))
    assert selector.matches(labels) == all(check(labels) for _, check in parts)


@given(st.text(max_size=60))
def test_any_text_is_a_selector_or_has_a_reason_why_it_is_none(text):
    reason = ""
    try:
        parse_selector(text).matches({})
    except BadSelector as error:
        reason = str(error)
    else:
        reason = "it is one"
    assert reason


@pytest.mark.parametrize("text", ["", " ", "\t\n"])
def test_an_empty_selector_matches_everything(text):
    assert parse_selector(text).matches({})
    assert parse_selector(text).matches({"a": "b"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (",a", "there is ',' where a key should be"),
        ("a,", "there is the end where a key should be"),
        ("a=b c", "there is 'c' where ',' should be"),
        ("a b", "there is 'b' after the key 'a'; operators are = == != in notin"),
        ("a in b", "there is 'b' where '(' should be"),
        ("a in (b", "there is the end where ')' should be"),
        ("a=b)", "there is ')' where ',' should be"),
        ("-a=b", "'-a' is no key of a label"),
        ("A/b/c=d", "'A/b/c' is no key of a label"),
        ("a=b!", "there is '!' where ',' should be"),
        ("a=-b", "'-b' is no value of a label"),
        ("a>b", "'b' is no integer"),
        ("!", "there is the end where a key should be"),
        ("a" * 64, f"{'a' * 63 + '...'!r} is no key of a label"),
        (f"a={'b' * 64}", f"{'b' * 63 + '...'!r} is no value of a label"),
    ],
)
def test_a_text_that_is_no_selector_is_refused_with_the_place(text, message):
    with pytest.raises(BadSelector) as refused:
        parse_selector(text)
    assert str(refused.value) == message


def test_a_selector_of_ten_kilobytes_is_read_and_a_longer_one_is_refused():
    longest = "a in (" + ",".join(["b" * 62] * 158) + ")"
    longest += " " * (MAX_SELECTOR_BYTES - len(longest))
    assert parse_selector(longest).requirements == (Requirement("a", Operator.IN, frozenset({"b" * 62})),)
    with pytest.raises(BadSelector, match="over 10000 bytes; select by fewer labels"):
        parse_selector(longest + " ")
