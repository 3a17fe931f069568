"""Reading the model list of any server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.demo.journey import models_of

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["data", "id", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("listed", "models"),
    [
        ({"data": [{"id": "tiny", "max_model_len": 2048}, {"id": "other"}]}, {"tiny": 2048, "other": None}),
        ({"data": [{"id": 5}, {"id": None}, {}, "x", {"id": ""}, {"id": "m", "max_model_len": "2k"}]}, {"m": None}),
        ({"data": None}, {}),
        ([], {}),
    ],
)
def test_the_models_of_a_server_are_the_listed_ones_with_a_name(listed: Any, models: dict[str, int | None]) -> None:
    assert models_of(listed) == models


@given(listed=json_values)
def test_any_model_list_can_be_read(listed: Any) -> None:
    assert all(name for name in models_of(listed))
