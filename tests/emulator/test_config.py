"""Invalid configurations are refused with a valid alternative."""

from __future__ import annotations

import pytest

from agent.emulator.config import EmulatorConfig, InvalidEmulatorConfig, ModelSpec


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_num_seqs": 0}, "max_num_seqs is 0; it must be at least 1"),
        ({"num_blocks": 1}, "one block is never used"),
        ({"num_blocks": 20}, "raise num_blocks to 513 or lower max_model_len"),
        ({"max_num_batched_tokens": 10}, "raise the former or lower the latter"),
        ({"max_num_queued_reqs": 0}, "leave it out for no limit"),
        ({"max_loras": -1}, "0 \\(no adapters\\) or more"),
        ({"prefill_tokens_per_second": 0.0}, "a number above 0"),
        ({"prefill_tokens_per_second": float("nan")}, "a number above 0"),
        ({"step_seconds": -0.1}, "step_seconds is -0.1; it must be 0 or more"),
        ({"startup_seconds": float("inf")}, "startup_seconds is inf"),
    ],
)
def test_an_invalid_field_is_refused_with_a_valid_value(fields, message):
    with pytest.raises(InvalidEmulatorConfig, match=message):
        EmulatorConfig(**fields)


def test_the_number_of_blocks_in_the_message_is_enough():
    assert EmulatorConfig(num_blocks=513).capacity == 512


def test_a_model_with_adapters_needs_slots_for_them():
    with pytest.raises(InvalidEmulatorConfig, match="adapter a needs max_loras of at least 1"):
        ModelSpec(adapters=("a",)).check(EmulatorConfig())
    ModelSpec(adapters=("a",)).check(EmulatorConfig(max_loras=1))
    with pytest.raises(InvalidEmulatorConfig, match="answer_tokens"):
        ModelSpec(answer_tokens=0).check(EmulatorConfig())


@pytest.mark.parametrize(
    "model", [ModelSpec(""), ModelSpec("m", ("",)), ModelSpec("m", ("a", "a")), ModelSpec("m", ("m",))]
)
def test_names_of_models_and_adapters_are_unique(model):
    with pytest.raises(InvalidEmulatorConfig, match="give each a unique name"):
        model.check(EmulatorConfig(max_loras=1))
