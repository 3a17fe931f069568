"""Settings that make no server are refused with what to write instead."""

from __future__ import annotations

import pytest

from agent.emulator.settings import BadSettings, Model, Settings


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0; it must be at least 1"),
        ({"num_blocks": 1}, "one block is never used"),
        ({"num_blocks": 20}, "raise num_blocks to 513 or lower max_model_len"),
        ({"max_num_batched_tokens": 10}, "raise the first or lower the second"),
        ({"max_num_queued_reqs": 0}, "leave it out for no limit"),
        ({"max_loras": -1}, "0 \\(no adapters\\) or more"),
        ({"prefill_tokens_per_second": 0.0}, "a number above 0"),
        ({"prefill_tokens_per_second": float("nan")}, "a number above 0"),
        ({"step_seconds": -0.1}, "step_seconds is -0.1; it must be 0 or more"),
        ({"startup_seconds": float("inf")}, "startup_seconds is inf"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_with_what_could_be(fields, says):
    with pytest.raises(BadSettings, match=says):
        Settings(**fields)


def test_the_least_number_of_blocks_that_the_message_names_is_enough():
    assert Settings(num_blocks=513).capacity == 512


def test_a_model_with_adapters_needs_slots_for_them():
    with pytest.raises(BadSettings, match="adapter a needs max_loras of at least 1"):
        Model(adapters=("a",)).check(Settings())
    Model(adapters=("a",)).check(Settings(max_loras=1))
    with pytest.raises(BadSettings, match="answer_tokens"):
        Model(answer_tokens=0).check(Settings())


@pytest.mark.parametrize("model", [Model(""), Model("m", ("",)), Model("m", ("a", "a")), Model("m", ("m",))])
def test_a_name_is_that_of_one_model_or_adapter(model):
    with pytest.raises(BadSettings, match="give each a name of its own"):
        model.check(Settings(max_loras=1))
