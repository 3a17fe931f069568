"""Numbers become quantities of Kubernetes, rounded up to thousandths."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serve.metrics_api.quantity import MAX_QUANTITY, quantity


def thousandths(text: str) -> int:
    return int(text[:-1]) if text.endswith("m") else 1000 * int(text)


@given(st.floats(0, MAX_QUANTITY))
def test_a_quantity_is_the_least_number_of_thousandths_that_is_not_below_the_value(value):
    text = quantity(value)
    assert text is not None
    found = thousandths(text)
    assert found / 1000 >= value
    assert found == 1000 * int(value) or (found - 1) / 1000 < value
    assert found < 2**63


@given(st.integers(0, 9_000_000_000))
def test_a_whole_number_of_thousandths_is_exact(value):
    assert thousandths(quantity(value / 1000) or "") == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (42.0, "42"), (3.5, "3500m"), (0.0001, "1m"), (0.57, "570m"), (0.9999, "1"), (1e15, str(10**15))],
)
def test_a_quantity_has_no_exponent_and_no_fraction(value, text):
    assert quantity(value) == text


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, -0.001, 1e16])
def test_a_number_without_a_quantity_is_none_and_never_zero(value):
    assert quantity(value) is None
