"""The engine's input and output: the specification of a request, the events it causes, the engine's state of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.emulator.config import EmulatorConfig


class JobSpec(NamedTuple):
    """One request as the engine sees it: prompt length, answer length, and the hashes of the blocks they fill.

    `hashes` holds one hash for each full block of the prompt, each covering all tokens up to the block's end (and the
    adapter and the salt). It may continue with the blocks of the answer, which are then cached as they fill. Without
    hashes a request hits nothing and leaves nothing in the prefix cache. `max_tokens` is the client's limit and is only
    counted. `choices` is the client's `n`, set on the first of its requests and 0 on the others, so that it is counted
    once. `finish_reason` is `length` or `stop`.
    """

    prompt_tokens: int
    output_tokens: int = 1
    hashes: Sequence[int] = ()
    lora: str = ""
    stream: bool = False
    finish_reason: str = "length"
    max_tokens: int | None = None
    choices: int = 1

    def check(self, config: EmulatorConfig) -> None:
        """Raise DoesNotFit if a server with this configuration could never run the request."""
        need = -(-(self.prompt_tokens + self.output_tokens - 1) // config.block_size)
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise DoesNotFit("a request needs at least one prompt token and one output token")
        if need > config.capacity:
            raise DoesNotFit(f"the request needs {need} blocks, the server has {config.capacity}")
        if self.lora and not config.max_loras:
            raise DoesNotFit(f"the server holds no adapters (max_loras is 0), the request needs {self.lora!r}")


class QueueFull(Exception):
    """The request was refused because `max_num_queued_reqs` requests wait already."""


class DoesNotFit(ValueError):
    """The request could never run: it needs more blocks than the server has, or an adapter that it cannot hold."""


class FirstToken(NamedTuple):
    """The prompt is computed and the first token is out; `cached_tokens` of the prompt were in the prefix cache."""

    id: int
    at: float
    cached_tokens: int


class TokenProgress(NamedTuple):
    """A streaming request has generated `tokens` tokens so far; sent only for requests with `stream`."""

    id: int
    at: float
    tokens: int


class Finished(NamedTuple):
    """A request ended after `tokens` tokens; `reason` is `length`, `stop` or `abort`."""

    id: int
    at: float
    tokens: int
    reason: str


JobEvent = FirstToken | TokenProgress | Finished


class GenerationJob:
    """The engine's state of one request.

    `generated` tokens existed at the boundary `decode_from`; a decoding job has one more for each boundary since. The
    engine computes `target` tokens before it can generate the next one: the prompt and, after a preemption, the tokens
    generated before. Step `b` runs from boundary `b` to boundary `b + 1`.
    """

    __slots__ = (
        "aborted",
        "admission",
        "arrived",
        "blocks",
        "cached",
        "computed",
        "decode_from",
        "decoding",
        "first_at",
        "generated",
        "hashed_to",
        "held",
        "id",
        "last_at",
        "preemptions",
        "reported",
        "scheduled_at",
        "spec",
        "target",
        "uncounted_preemptions",
        "unhashed",
        "version",
    )  # fmt: skip

    def __init__(self, id: int, spec: JobSpec, arrived: float) -> None:
        self.id = id
        self.spec = spec
        self.arrived = arrived
        self.target = spec.prompt_tokens
        self.computed = 0
        self.generated = 0
        self.decode_from = 0
        self.decoding = False
        self.held: list[int] = []  # hashes of the hashed blocks that it holds
        self.unhashed = 0  # blocks that it holds beside those
        self.blocks = 0
        self.hashed_to = 0  # its first blocks up to here are full and were offered to the cache
        self.cached = 0
        self.scheduled_at = -1.0
        self.first_at = -1.0
        self.last_at = -1.0
        self.preemptions = 0
        self.uncounted_preemptions = 0
        self.version = 0  # of its entry in the engine's heap
        self.reported = 0  # tokens in its last TokenProgress
        self.aborted = False
        self.admission = 0  # number of its admission: the order of the batch

    def generated_at(self, boundary: int) -> int:
        """Tokens generated when `boundary` is reached."""
        return self.generated + (boundary - self.decode_from if self.decoding else 0)
