"""The families of the emulated `/metrics` page, in the order and with the types and labels of the recorded vLLM 0.32.

Each row has a family's name, type and help text, and how its samples are read from an engine. As in the recording, a
counter is followed by its `_created` family. `agent.emulator.metrics` writes the families whose series vary
(`lora_requests_info`, `http_*`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.emulator.counters import BucketCounter
from agent.emulator.engine import EngineSimulation

Labels = tuple[tuple[str, str], ...]


class FamilySample(NamedTuple):
    """One sample of a counter or gauge: its labels beside `engine` and `model_name`, and how to read its value."""

    labels: Labels
    value: Callable[[EngineSimulation], float]


class MetricFamily(NamedTuple):
    """One row; `kind` is `counter`, `gauge` or `histogram`; without `engine_label` vLLM omits the label `engine`."""

    name: str
    kind: str
    help: str
    samples: tuple[FamilySample, ...] = ()
    histogram: Callable[[EngineSimulation], BucketCounter] | None = None
    engine_label: bool = True
    only_with_kv_cache_metrics: bool = False


def _counter(name: str, help: str, value: Callable[[EngineSimulation], float]) -> MetricFamily:
    return MetricFamily(name, "counter", help, (FamilySample((), value),))


def _gauge(name: str, help: str, value: Callable[[EngineSimulation], float]) -> MetricFamily:
    return MetricFamily(name, "gauge", help, (FamilySample((), value),))


def _histogram(
    name: str,
    help: str,
    histogram: Callable[[EngineSimulation], BucketCounter],
    *,
    only_with_kv_cache_metrics: bool = False,
) -> MetricFamily:
    return MetricFamily(
        name, "histogram", help, histogram=histogram, only_with_kv_cache_metrics=only_with_kv_cache_metrics
    )


def _by_label(label: str, values: dict[str, Callable[[EngineSimulation], float]]) -> tuple[FamilySample, ...]:
    return tuple(FamilySample(((label, name),), value) for name, value in values.items())


def _zero(_: EngineSimulation) -> float:
    return 0.0


def _plus(histogram: BucketCounter, value: float, times: int) -> BucketCounter:
    """A copy of the histogram with `times` more observations; the histogram itself for none."""
    if not times:
        return histogram
    copied = histogram.copy()
    copied.add(value, times)
    return copied


def _iteration_tokens(engine: EngineSimulation) -> BucketCounter:
    steps, tokens, _ = engine.uncounted_steps()
    return _plus(engine.counters.iteration, float(tokens), steps)


def _inter_token(engine: EngineSimulation) -> BucketCounter:
    steps, tokens, seconds = engine.uncounted_steps()
    return _plus(engine.counters.inter_token, seconds, steps * tokens)


def _generated(engine: EngineSimulation) -> float:
    steps, tokens, _ = engine.uncounted_steps()
    return engine.counters.generation_tokens + steps * tokens


def _success(reason: str) -> Callable[[EngineSimulation], float]:
    return lambda engine: engine.counters.success[reason]


FAMILIES: Final = (
    _counter("estimated_flops_per_gpu_total", "Floating point operations per GPU; always 0 here.", _zero),
    _counter("estimated_read_bytes_per_gpu_total", "Bytes read per GPU; always 0 here.", _zero),
    _counter("estimated_write_bytes_per_gpu_total", "Bytes written per GPU; always 0 here.", _zero),
    _gauge("num_requests_running", "Requests in the batch.", lambda e: e.running),
    _gauge("num_requests_waiting", "Requests accepted and not yet in the batch.", lambda e: e.waiting),
    MetricFamily(
        "num_requests_waiting_by_reason",
        "gauge",
        "Waiting requests: 'capacity' for batch space or KV blocks, 'deferred' for others, such as an adapter slot.",
        _by_label("reason", {"capacity": lambda e: e.waiting - e.deferred, "deferred": lambda e: e.deferred}),
    ),
    MetricFamily(
        "engine_sleep_state",
        "gauge",
        "1 for the current state of the engine.",
        _by_label(
            "sleep_state",
            {
                "awake": lambda e: float(e.sleep_level == 0),
                "weights_offloaded": lambda e: float(e.sleep_level == 1),
                "discard_all": lambda e: float(e.sleep_level == 2),
            },
        ),
    ),
    _gauge("kv_cache_usage_perc", "Ratio of the KV blocks held by running requests, 0 to 1.", lambda e: e.kv_usage),
    _counter(
        "prefix_cache_queries_total",
        "Prompt tokens looked up in the prefix cache.",
        lambda e: e.counters.prefix_queries,
    ),
    _counter("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", lambda e: e.counters.prefix_hits),
    _counter("external_prefix_cache_queries_total", "Tokens looked up in other servers; always 0 here.", _zero),
    _counter("external_prefix_cache_hits_total", "Tokens found in other servers; always 0 here.", _zero),
    _counter("mm_cache_queries_total", "Multimodal inputs looked up; always 0 here.", _zero),
    _counter("mm_cache_hits_total", "Multimodal inputs found; always 0 here.", _zero),
    _counter(
        "num_preemptions_total",
        "Requests preempted (KV cache full), counted when they resume.",
        lambda e: e.counters.preemptions,
    ),
    _counter(
        "prompt_tokens_total", "Prompt tokens of requests with a first token.", lambda e: e.counters.prompt_tokens
    ),
    MetricFamily(
        "prompt_tokens_by_source_total",
        "counter",
        "Prompt tokens by source.",
        _by_label(
            "source",
            {
                "local_compute": lambda e: e.counters.prompt_tokens - e.counters.prompt_tokens_cached,
                "local_cache_hit": lambda e: e.counters.prompt_tokens_cached,
                "external_kv_transfer": _zero,
            },
        ),
    ),
    _counter(
        "prompt_tokens_cached_total",
        "Prompt tokens that were not computed.",
        lambda e: e.counters.prompt_tokens_cached,
    ),
    MetricFamily(
        "prompt_tokens_cached_by_source_total",
        "counter",
        "Prompt tokens that were not computed, by cache tier.",
        _by_label(
            "source",
            {
                "device": lambda e: e.counters.prompt_tokens_cached,
                "host": _zero,
                "p2p": _zero,
                "disk": _zero,
                "external_unspecified": _zero,
            },
        ),
    ),
    _counter("generation_tokens_total", "Tokens generated.", _generated),
    MetricFamily(
        "request_success_total",
        "counter",
        "Requests ended by the server, by reason.",
        _by_label("finished_reason", {r: _success(r) for r in ("stop", "length", "abort", "error", "repetition")}),
    ),
    MetricFamily(
        "admission_rejections_total",
        "counter",
        "Requests rejected because the queue was full.",
        _by_label("reason", {"max_num_queued_reqs": lambda e: e.counters.rejections, "max_num_queued_tokens": _zero}),
        engine_label=False,
    ),
    _histogram("request_prompt_tokens", "Prompt tokens of a request.", lambda e: e.counters.prompt),
    _histogram("request_generation_tokens", "Generated tokens of a request.", lambda e: e.counters.generation),
    _histogram("iteration_tokens_total", "Tokens processed in one step.", _iteration_tokens),
    _histogram(
        "request_max_num_generation_tokens",
        "Generated tokens of a request's longest answer.",
        lambda e: e.counters.max_generation,
    ),
    _histogram("request_params_n", "The parameter n of a request.", lambda e: e.counters.params_n),
    _histogram(
        "request_params_max_tokens",
        "The parameter max_tokens of a request.",
        lambda e: e.counters.params_max_tokens,
    ),
    _histogram(
        "time_to_first_token_seconds",
        "Time from arrival to the first token.",
        lambda e: e.counters.first_token,
    ),
    _histogram("inter_token_latency_seconds", "Time from one token to the next.", _inter_token),
    _histogram(
        "request_time_per_output_token_seconds",
        "Mean time between the tokens of an answer.",
        lambda e: e.counters.per_output_token,
    ),
    _histogram("e2e_request_latency_seconds", "Time from arrival to the last token.", lambda e: e.counters.e2e),
    _histogram("request_queue_time_seconds", "Time from arrival to the batch.", lambda e: e.counters.queue),
    _histogram(
        "request_inference_time_seconds", "Time from the batch to the last token.", lambda e: e.counters.inference
    ),
    _histogram("request_prefill_time_seconds", "Time from the batch to the first token.", lambda e: e.counters.prefill),
    _histogram("request_decode_time_seconds", "Time from the first token to the last.", lambda e: e.counters.decode),
    _histogram("request_num_preemptions", "Preemptions of a request.", lambda e: e.counters.request_preemptions),
    _histogram(
        "request_prefill_kv_computed_tokens",
        "Prompt tokens that were computed.",
        lambda e: e.counters.kv_computed,
    ),
    _histogram(
        "kv_block_lifetime_seconds",
        "Time from a block's first use to its eviction.",
        lambda e: e.counters.block_lifetime,
        only_with_kv_cache_metrics=True,
    ),
    _histogram(
        "kv_block_idle_before_evict_seconds",
        "Idle time of a block before its eviction.",
        lambda e: e.counters.block_idle,
        only_with_kv_cache_metrics=True,
    ),
    _histogram(
        "kv_block_reuse_gap_seconds",
        "Idle time of a block before its next use.",
        lambda e: e.counters.block_reuse,
        only_with_kv_cache_metrics=True,
    ),
)

_CONSTANT_LABELS: Final = {
    "_block_size_resolved": "True",
    "cache_dtype": "auto",
    "cache_hit_alignment_tokens": "None",
    "enable_mamba_shared_prefix_checkpoint": "False",
    "enable_prefix_caching": "True",
    "gpu_memory_utilization": "0.92",
    "hash_block_size": "None",
    "is_attention_free": "False",
    "kv_cache_dtype_skip_layers": "[]",
    "kv_cache_layout": "None",
    "kv_offloading_backend": "native",
    "kv_offloading_size": "None",
    "kv_sharing_fast_prefill": "False",
    "mamba_block_size": "None",
    "mamba_cache_dtype": "auto",
    "mamba_cache_mode": "none",
    "mamba_page_size_padded": "None",
    "mamba_ssm_cache_dtype": "float32",
    "num_cpu_blocks": "None",
    "prefix_cache_retention_interval": "0",
    "prefix_caching_hash_algo": "sha256",
    "prefix_match_unit": "None",
    "replayssm_buffer_len": "16",
    "skip_page_size_padded": "None",
    "sliding_window": "None",
    "swa_bounded_replay": "True",
    "use_kda_recoverssm": "False",
    "use_replayssm": "False",
    "user_specified_block_size": "True",
}


def cache_config(config: EmulatorConfig, engine: str) -> Labels:
    """The labels of `vllm:cache_config_info`, sorted; those about the cache size are true, the others as recorded."""
    tokens = config.num_blocks * config.block_size
    actual = {
        "block_size": str(config.block_size),
        "effective_attention_block_size": str(config.block_size),
        "engine": engine,
        "kv_cache_max_concurrency": repr(tokens / config.max_model_len),
        "kv_cache_memory_bytes": str(tokens * 1024),
        "kv_cache_size_tokens": str(tokens),
        "num_gpu_blocks": str(config.num_blocks),
        "num_gpu_blocks_override": str(config.num_blocks),
    }
    return tuple(sorted((_CONSTANT_LABELS | actual).items()))
