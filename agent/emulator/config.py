"""The configuration of an emulated model server: sizes, rates and limits, immutable and validated.

Names are those of vLLM's flags where vLLM has one. Rates belong to the step model of `agent.emulator.engine`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


class InvalidEmulatorConfig(ValueError):
    """A configuration that no server could run with; the message says what to change."""


@dataclass(frozen=True, slots=True)
class EmulatorConfig:
    """One server. Tokens, blocks and requests are counts; other fields have their unit in their name.

    As in vLLM, one of `num_blocks` blocks is never used, so `num_blocks - 1` hold tokens. A step lasts
    `step_seconds + step_seconds_per_request * decoding requests + prefill tokens / prefill_tokens_per_second`,
    plus `lora_step_seconds` when a request of the batch uses an adapter and `lora_load_seconds` for each adapter
    that is loaded into a slot.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 8192
    num_blocks: int = 4096
    block_size: int = 16
    max_model_len: int = 8192
    max_num_queued_reqs: int | None = None
    prefill_tokens_per_second: float = 20_480.0
    step_seconds: float = 0.008
    step_seconds_per_request: float = 0.0002
    max_loras: int = 0
    lora_step_seconds: float = 0.0
    lora_load_seconds: float = 0.0
    startup_seconds: float = 0.0
    kv_cache_metrics: bool = False
    disable_log_stats: bool = False

    def __post_init__(self) -> None:
        """Raise InvalidEmulatorConfig with the field and the smallest change that makes it valid."""
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "max_model_len"):
            if getattr(self, name) < 1:
                raise InvalidEmulatorConfig(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_blocks < 2:
            raise InvalidEmulatorConfig(
                f"num_blocks is {self.num_blocks}; it must be at least 2, as one block is never used"
            )
        if self.max_num_queued_reqs is not None and self.max_num_queued_reqs < 1:
            raise InvalidEmulatorConfig("max_num_queued_reqs must be at least 1; leave it out for no limit")
        if self.max_loras < 0:
            raise InvalidEmulatorConfig("max_loras must be 0 (no adapters) or more")
        rate = self.prefill_tokens_per_second
        if not (rate > 0 and math.isfinite(rate)):
            raise InvalidEmulatorConfig(f"prefill_tokens_per_second is {rate}; it must be a number above 0")
        for field in fields(self):
            value = getattr(self, field.name)
            if "seconds" in field.name and not (math.isfinite(value) and value >= 0):
                raise InvalidEmulatorConfig(f"{field.name} is {value}; it must be 0 or more")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise InvalidEmulatorConfig(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) is below max_num_seqs ({self.max_num_seqs}): "
                "a full batch could not decode; raise the former or lower the latter"
            )
        if self.capacity * self.block_size < self.max_model_len:
            raise InvalidEmulatorConfig(
                f"{self.capacity} usable blocks of {self.block_size} hold {self.capacity * self.block_size} tokens, "
                f"less than max_model_len {self.max_model_len}: raise num_blocks to "
                f"{-(-self.max_model_len // self.block_size) + 1} or lower max_model_len"
            )

    @property
    def capacity(self) -> int:
        """Blocks that can hold tokens."""
        return self.num_blocks - 1

    @classmethod
    def prefill_only(cls, *, blocks: int, block_size: int, prefill_tokens_per_second: float) -> EmulatorConfig:
        """A server that prefills one request after the other and spends no time on decoding.

        This is the model of the routing benches: first come, first served, `blocks` usable blocks, and a time to first
        token of (uncached tokens queued before + own uncached tokens) / rate. Use `output_tokens=1` in each request.
        """
        return cls(
            max_num_seqs=1,
            max_num_batched_tokens=1 << 40,
            num_blocks=blocks + 1,
            block_size=block_size,
            max_model_len=blocks * block_size,
            prefill_tokens_per_second=prefill_tokens_per_second,
            step_seconds=0.0,
            step_seconds_per_request=0.0,
        )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The model, the adapters and the answers of a server."""

    name: str = "emulated"
    adapters: tuple[str, ...] = ()
    seed: int = 0
    answer_tokens: int = 256  # length at which an answer ends with `stop`
    stream_interval: int = 1  # tokens in one chunk of a stream

    def check(self, config: EmulatorConfig) -> None:
        """Raise InvalidEmulatorConfig if a server with this configuration cannot serve the model."""
        names = (self.name, *self.adapters)
        if not all(names) or len(set(names)) < len(names):
            raise InvalidEmulatorConfig(
                f"the model and its adapters are {', '.join(map(repr, names))}; give each a unique name"
            )
        if self.adapters and not config.max_loras:
            raise InvalidEmulatorConfig(f"the adapter {self.adapters[0]} needs max_loras of at least 1")
        if self.answer_tokens < 1 or self.stream_interval < 1:
            raise InvalidEmulatorConfig("answer_tokens and stream_interval must be at least 1")
