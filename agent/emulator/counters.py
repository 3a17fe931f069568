"""The counters and histograms of one engine, with the bucket bounds of the recorded vLLM 0.32 page.

A sum of floats depends on the order of additions. So the engine counts equal steps in one call, when the last of them
ends, however often it was advanced in between; a page written earlier adds the steps so far to a copy.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from agent.emulator.jobs import GenerationJob

_TOKENS_PER_STEP: Final = tuple(float(1 << i) for i in (0, *range(3, 15)))
_REQUEST_SECONDS: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_FIRST_TOKEN_SECONDS: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0, 160.0, 640.0, 2560.0),
)
_INTER_TOKEN_SECONDS: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0),
    *(40.0, 80.0),
)
_BLOCK_SECONDS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0),
    *(120.0, 300.0, 600.0, 1200.0, 1800.0),
)


class BucketCounter:
    """A histogram: one count per bucket (upper bounds are inclusive), and the sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Observe `value`, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def copy(self) -> BucketCounter:
        """An independent copy."""
        copied = BucketCounter(self.bounds)
        copied.counts = self.counts[:]
        copied.sum = self.sum
        return copied


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


class EngineCounters:
    """All counters of one engine since its start, named as on the page without prefix and unit."""

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
        self.prompt = BucketCounter(tokens)
        self.generation = BucketCounter(tokens)
        self.iteration = BucketCounter(_TOKENS_PER_STEP)
        self.max_generation = BucketCounter(tokens)
        self.params_n = BucketCounter((1.0, 2.0, 5.0, 10.0, 20.0))
        self.params_max_tokens = BucketCounter(tokens)
        self.first_token = BucketCounter(_FIRST_TOKEN_SECONDS)
        self.inter_token = BucketCounter(_INTER_TOKEN_SECONDS)
        self.per_output_token = BucketCounter(_INTER_TOKEN_SECONDS)
        self.e2e = BucketCounter(_REQUEST_SECONDS)
        self.queue = BucketCounter(_REQUEST_SECONDS)
        self.inference = BucketCounter(_REQUEST_SECONDS)
        self.prefill = BucketCounter(_REQUEST_SECONDS)
        self.decode = BucketCounter(_REQUEST_SECONDS)
        self.request_preemptions = BucketCounter((1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0))
        self.kv_computed = BucketCounter(tokens)
        self.block_lifetime = BucketCounter(_BLOCK_SECONDS)
        self.block_idle = BucketCounter(_BLOCK_SECONDS)
        self.block_reuse = BucketCounter(_BLOCK_SECONDS)

    def record_block_age(self, kind: str, seconds: float) -> None:
        """Observe the `lifetime` of an evicted block, its `idle` time before that, or the gap before its `reuse`."""
        {"lifetime": self.block_lifetime, "idle": self.block_idle, "reuse": self.block_reuse}[kind].add(seconds)

    def count_steps(self, steps: int, decoding: int, prefill_tokens: int, seconds: float) -> None:
        """Count `steps` equal steps of `seconds`, each with `decoding` requests that get one token."""
        tokens = decoding * steps
        if tokens:
            self.generation_tokens += tokens
            self.inter_token.add(seconds, tokens)
        self.iteration.add(float(decoding + prefill_tokens), steps)

    def count_scheduled(self, job: GenerationJob) -> None:
        """Count a request's first prefix cache query; vLLM does not count the one after a preemption (recorded)."""
        self.prefix_queries += job.spec.prompt_tokens
        self.prefix_hits += job.cached

    def count_first_token(self, job: GenerationJob, at: float) -> None:
        """Count a request's first token."""
        self.prompt_tokens += job.spec.prompt_tokens
        self.prompt_tokens_cached += job.cached
        self.first_token.add(at - job.arrived)

    def count_finished(self, job: GenerationJob, at: float) -> None:
        """Count a request whose last token came at `at`."""
        spec = job.spec
        count = spec.output_tokens
        self.success[spec.finish_reason] += 1
        self.prompt.add(spec.prompt_tokens)
        self.generation.add(count)
        if spec.choices:
            self.params_n.add(spec.choices)
            self.max_generation.add(count)
        if spec.max_tokens is not None:
            self.params_max_tokens.add(spec.max_tokens)
        self.per_output_token.add((at - job.first_at) / (count - 1) if count > 1 else 0.0)
        self.e2e.add(at - job.arrived)
        self.queue.add(job.scheduled_at - job.arrived)
        self.inference.add(at - job.scheduled_at)
        self.prefill.add(job.first_at - job.scheduled_at)
        self.decode.add(at - job.first_at)
        self.request_preemptions.add(job.preemptions)
        self.kv_computed.add(spec.prompt_tokens - job.cached)
