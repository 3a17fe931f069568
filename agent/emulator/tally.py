"""What a server counts: plain counters and histograms, with the bucket bounds of the recorded vLLM 0.32 page.

Sums are floats and so depend on the order of additions. The engine therefore adds a run of equal steps in one call, at
the step at which the run ends, however often it was asked in between; a page taken in the middle gets a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from agent.emulator.orders import Job

_POWERS: Final = tuple(float(1 << i) for i in (0, *range(3, 15)))
_LATENCY: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FIRST: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0),
)
_LIVES: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1200.0, 1800.0),
)


class Histogram:
    """Counts by upper bound (a bound counts what equals it), and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` over."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def copy(self) -> Histogram:
        """An equal histogram that can be added to alone."""
        twin = Histogram(self.bounds)
        twin.counts = self.counts[:]
        twin.sum = self.sum
        return twin


def model_len_bounds(max_model_len: int) -> tuple[float, ...]:
    """Bounds 1, 2, 5, 10, ... up to the model's length: how vLLM builds the buckets of its token histograms."""
    bounds: list[float] = []
    scale = 1
    while True:
        for lead in (1, 2, 5):
            if lead * scale > max_model_len:
                return tuple(bounds)
            bounds.append(float(lead * scale))
        scale *= 10


class Tally:
    """All counters of one engine since its start. Names are those of the page, without prefix and unit suffix."""

    def __init__(self, max_model_len: int) -> None:
        tokens = model_len_bounds(max_model_len)
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.preemptions = 0
        self.prompt_tokens = 0
        self.prompt_tokens_cached = 0
        self.generation_tokens = 0
        self.success = {"stop": 0, "length": 0, "abort": 0, "error": 0, "repetition": 0}
        self.rejections = 0
        self.aborted = 0
        self.prompt = Histogram(tokens)
        self.generation = Histogram(tokens)
        self.iteration = Histogram(_POWERS)
        self.max_generation = Histogram(tokens)
        self.params_n = Histogram((1.0, 2.0, 5.0, 10.0, 20.0))
        self.params_max_tokens = Histogram(tokens)
        self.first_token = Histogram(_FIRST)
        self.inter_token = Histogram(_BETWEEN)
        self.per_output_token = Histogram(_BETWEEN)
        self.e2e = Histogram(_LATENCY)
        self.queue = Histogram(_LATENCY)
        self.inference = Histogram(_LATENCY)
        self.prefill = Histogram(_LATENCY)
        self.decode = Histogram(_LATENCY)
        self.request_preemptions = Histogram((1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0))
        self.kv_computed = Histogram(tokens)
        self.block_lifetime = Histogram(_LIVES)
        self.block_idle = Histogram(_LIVES)
        self.block_reuse = Histogram(_LIVES)

    def block_life(self, what: str, seconds: float) -> None:
        """Count how long a block lived (`lifetime`), was `idle` before it left, or waited for `reuse`."""
        {"lifetime": self.block_lifetime, "idle": self.block_idle, "reuse": self.block_reuse}[what].add(seconds)

    def steps(self, steps: int, decoding: int, prefill_tokens: int, seconds: float) -> None:
        """Count `steps` equal steps of `seconds` with `decoding` requests writing one token each."""
        tokens = decoding * steps
        if tokens:
            self.generation_tokens += tokens
            self.inter_token.add(seconds, tokens)
        self.iteration.add(float(decoding + prefill_tokens), steps)

    def scheduled(self, job: Job) -> None:
        """Count a request's first look into the prefix cache; the look after a preemption is not counted (recorded)."""
        self.prefix_queries += job.order.prompt_tokens
        self.prefix_hits += job.cached

    def first(self, job: Job, at: float) -> None:
        """Count a request's first token."""
        self.prompt_tokens += job.order.prompt_tokens
        self.prompt_tokens_cached += job.cached
        self.first_token.add(at - job.arrived)

    def finished(self, job: Job, at: float) -> None:
        """Count a request that wrote its last token at `at`."""
        order = job.order
        count = order.output_tokens
        self.success[order.ends] += 1
        self.prompt.add(order.prompt_tokens)
        self.generation.add(count)
        if order.choices:
            self.params_n.add(order.choices)
            self.max_generation.add(count)
        if order.max_tokens is not None:
            self.params_max_tokens.add(order.max_tokens)
        self.per_output_token.add((at - job.first_at) / (count - 1) if count > 1 else 0.0)
        self.e2e.add(at - job.arrived)
        self.queue.add(job.scheduled_at - job.arrived)
        self.inference.add(at - job.scheduled_at)
        self.prefill.add(job.first_at - job.scheduled_at)
        self.decode.add(at - job.first_at)
        self.request_preemptions.add(job.preempted)
        self.kv_computed.add(order.prompt_tokens - job.cached)
