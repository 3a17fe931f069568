"""What goes into the engine and what comes out of it: orders, events, and the engine's own record of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from agent.emulator.settings import Settings


class Order(NamedTuple):
    """One request as the engine sees it: how much there is to read and to write, and which blocks the text makes.

    `hashes` names the prompt's full blocks, each covering all tokens before it (and the adapter and salt, where the
    prefix may not be shared); it may go on into the answer, whose blocks are then remembered as they fill. None of it
    need be given: such a request hits nothing and leaves nothing behind. `max_tokens` is what the client asked for and
    is only counted; `choices` is how many requests this one stands for in the counts of `n` (0: counted by a sibling).
    """

    prompt_tokens: int
    output_tokens: int = 1
    hashes: Sequence[int] = ()
    lora: str = ""
    stream: bool = False
    ends: str = "length"  # or "stop"
    max_tokens: int | None = None
    choices: int = 1

    def check(self, settings: Settings) -> None:
        """Raise DoesNotFit if no server of these settings could ever run the request."""
        need = -(-(self.prompt_tokens + self.output_tokens - 1) // settings.block_size)
        if self.prompt_tokens < 1 or self.output_tokens < 1:
            raise DoesNotFit("a request needs at least one prompt token and one output token")
        if need > settings.capacity:
            raise DoesNotFit(f"the request needs {need} blocks, the server has {settings.capacity}")
        if self.lora and not settings.max_loras:
            raise DoesNotFit(f"the server holds no adapters (max_loras is 0), the request asks for {self.lora!r}")


class QueueFull(Exception):
    """The request was refused because `max_num_queued_reqs` requests wait already."""


class DoesNotFit(ValueError):
    """The request could never run: it needs more blocks than the server has, or an adapter that it cannot hold."""


class FirstToken(NamedTuple):
    """The prompt is read and the first token is out; `cached_tokens` of the prompt were found in the prefix cache."""

    id: int
    at: float
    cached_tokens: int


class Tokens(NamedTuple):
    """A streaming request has `tokens` tokens by now; only for requests with `stream`."""

    id: int
    at: float
    tokens: int


class Finished(NamedTuple):
    """A request is over with `tokens` tokens; `reason` is `length`, `stop` or `abort`."""

    id: int
    at: float
    tokens: int
    reason: str


Event = FirstToken | Tokens | Finished


class Job:
    """A request inside the engine.

    `made` tokens were written when the boundary `joined` was reached; a decoding job has one more for each boundary
    since. `target` tokens have to be read before the next one can be written: the prompt, and after a preemption also
    what had been written. Steps are counted by their boundaries: step `b` runs from boundary `b` to boundary `b + 1`.
    """

    __slots__ = (
        "aborted",
        "arrived",
        "blocks",
        "cached",
        "computed",
        "decoding",
        "first_at",
        "held",
        "id",
        "joined",
        "last_at",
        "made",
        "named_to",
        "order",
        "place",
        "preempted",
        "scheduled_at",
        "target",
        "told",
        "unnamed",
        "unseen",
        "version",
    )  # fmt: skip

    def __init__(self, id: int, order: Order, arrived: float) -> None:
        self.id = id
        self.order = order
        self.arrived = arrived
        self.target = order.prompt_tokens
        self.computed = 0
        self.made = 0
        self.joined = 0
        self.decoding = False
        self.held: list[int] = []
        self.unnamed = 0
        self.blocks = 0
        self.named_to = 0
        self.cached = 0
        self.scheduled_at = -1.0
        self.first_at = -1.0
        self.last_at = -1.0
        self.preempted = 0
        self.unseen = 0
        self.version = 0
        self.told = 0
        self.aborted = False
        self.place = 0  # grows with each admission: the order of the batch

    def made_by(self, boundary: int) -> int:
        """Tokens written when `boundary` is reached."""
        return self.made + (boundary - self.joined if self.decoding else 0)
