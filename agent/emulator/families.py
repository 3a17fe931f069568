"""The families of the emulated `/metrics` page, in the order, with the types and the labels of the recorded vLLM 0.32.

Each row names a family, its type, what it means, and how its samples are got from an engine. A counter is followed by
its `_created` family, as in the recording; the page's variable parts (`lora_requests_info`, `http_*`) are in
`agent.emulator.metrics`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from agent.emulator.engine import Engine
from agent.emulator.settings import Settings
from agent.emulator.tally import Histogram

Labels = tuple[tuple[str, str], ...]


class Counted(NamedTuple):
    """One sample of a plain family: labels beside `engine` and `model_name`, and the value."""

    labels: Labels
    value: Callable[[Engine], float]


class Family(NamedTuple):
    """A row: `kind` is `counter`, `gauge` or `histogram`; `engine_label` is False where vLLM leaves `engine` out."""

    name: str
    kind: str
    help: str
    samples: tuple[Counted, ...] = ()
    histogram: Callable[[Engine], Histogram] | None = None
    engine_label: bool = True
    only_with_kv_cache_metrics: bool = False


def _one(value: Callable[[Engine], float]) -> tuple[Counted, ...]:
    return (Counted((), value),)


def _each(label: str, values: dict[str, Callable[[Engine], float]]) -> tuple[Counted, ...]:
    return tuple(Counted(((label, name),), value) for name, value in values.items())


def _zero(_: Engine) -> float:
    return 0.0


def _awake(_: Engine) -> float:
    return 1.0


def _with_open_run(histogram: Histogram, value: float, times: int) -> Histogram:
    """The histogram with the steps that were done and not yet counted."""
    if not times:
        return histogram
    twin = histogram.copy()
    twin.add(value, times)
    return twin


def _iterations(engine: Engine) -> Histogram:
    steps, tokens, _ = engine.open_run()
    return _with_open_run(engine.tally.iteration, float(tokens), steps)


def _inter_token(engine: Engine) -> Histogram:
    steps, tokens, seconds = engine.open_run()
    return _with_open_run(engine.tally.inter_token, seconds, steps * tokens)


def _generated(engine: Engine) -> float:
    steps, tokens, _ = engine.open_run()
    return engine.tally.generation_tokens + steps * tokens


def _success(reason: str) -> Callable[[Engine], float]:
    return lambda engine: engine.tally.success[reason]


FAMILIES: Final = (
    Family("estimated_flops_per_gpu_total", "counter", "Floating point work per GPU; not estimated here.", _one(_zero)),
    Family("estimated_read_bytes_per_gpu_total", "counter", "Bytes read per GPU; not estimated here.", _one(_zero)),
    Family("estimated_write_bytes_per_gpu_total", "counter", "Bytes written per GPU; not estimated here.", _one(_zero)),
    Family("num_requests_running", "gauge", "Requests in the batch.", _one(lambda e: e.running)),
    Family("num_requests_waiting", "gauge", "Requests accepted and not in the batch.", _one(lambda e: e.waiting)),
    Family(
        "num_requests_waiting_by_reason",
        "gauge",
        "Waiting requests: 'capacity' for a place or blocks, 'deferred' for something else such as an adapter slot.",
        _each("reason", {"capacity": lambda e: e.waiting - e.deferred, "deferred": lambda e: e.deferred}),
    ),
    Family(
        "engine_sleep_state",
        "gauge",
        "1 for the state that the engine is in.",
        _each("sleep_state", {"awake": _awake, "weights_offloaded": _zero, "discard_all": _zero}),
    ),
    Family("kv_cache_usage_perc", "gauge", "Part of the KV blocks held by running requests, 0 to 1.",
           _one(lambda e: e.kv_usage)),
    Family("prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.",
           _one(lambda e: e.tally.prefix_queries)),
    Family("prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.",
           _one(lambda e: e.tally.prefix_hits)),
    Family("external_prefix_cache_queries_total", "counter", "Tokens looked up in other servers; none here.",
           _one(_zero)),
    Family("external_prefix_cache_hits_total", "counter", "Tokens found in other servers; none here.", _one(_zero)),
    Family("mm_cache_queries_total", "counter", "Images and sounds looked up; none here.", _one(_zero)),
    Family("mm_cache_hits_total", "counter", "Images and sounds found; none here.", _one(_zero)),
    Family("num_preemptions_total", "counter", "Requests thrown out of the batch for room, counted when they resume.",
           _one(lambda e: e.tally.preemptions)),
    Family("prompt_tokens_total", "counter", "Prompt tokens of requests that began to answer.",
           _one(lambda e: e.tally.prompt_tokens)),
    Family(
        "prompt_tokens_by_source_total",
        "counter",
        "Prompt tokens by where they came from.",
        _each(
            "source",
            {
                "local_compute": lambda e: e.tally.prompt_tokens - e.tally.prompt_tokens_cached,
                "local_cache_hit": lambda e: e.tally.prompt_tokens_cached,
                "external_kv_transfer": _zero,
            },
        ),
    ),
    Family("prompt_tokens_cached_total", "counter", "Prompt tokens that were not computed.",
           _one(lambda e: e.tally.prompt_tokens_cached)),
    Family(
        "prompt_tokens_cached_by_source_total",
        "counter",
        "Prompt tokens that were not computed, by the memory that held them.",
        _each(
            "source",
            {
                "device": lambda e: e.tally.prompt_tokens_cached,
                "host": _zero,
                "p2p": _zero,
                "disk": _zero,
                "external_unspecified": _zero,
            },
        ),
    ),
    Family("generation_tokens_total", "counter", "Tokens written.", _one(_generated)),
    Family(
        "request_success_total",
        "counter",
        "Requests ended by the server, by reason.",
        _each("finished_reason", {r: _success(r) for r in ("stop", "length", "abort", "error", "repetition")}),
    ),
    Family(
        "admission_rejections_total",
        "counter",
        "Requests refused because too many waited.",
        _each("reason", {"max_num_queued_reqs": lambda e: e.tally.rejections, "max_num_queued_tokens": _zero}),
        engine_label=False,
    ),
    Family("request_prompt_tokens", "histogram", "Prompt tokens of a request.", histogram=lambda e: e.tally.prompt),
    Family("request_generation_tokens", "histogram", "Tokens of an answer.", histogram=lambda e: e.tally.generation),
    Family("iteration_tokens_total", "histogram", "Tokens read and written in one step.", histogram=_iterations),
    Family("request_max_num_generation_tokens", "histogram", "Tokens of the longest of a request's answers.",
           histogram=lambda e: e.tally.max_generation),
    Family("request_params_n", "histogram", "Answers asked for.", histogram=lambda e: e.tally.params_n),
    Family("request_params_max_tokens", "histogram", "Most tokens asked for.",
           histogram=lambda e: e.tally.params_max_tokens),
    Family("time_to_first_token_seconds", "histogram", "From arrival to the first token.",
           histogram=lambda e: e.tally.first_token),
    Family("inter_token_latency_seconds", "histogram", "From one token to the next.", histogram=_inter_token),
    Family("request_time_per_output_token_seconds", "histogram", "Mean time between the tokens of an answer.",
           histogram=lambda e: e.tally.per_output_token),
    Family("e2e_request_latency_seconds", "histogram", "From arrival to the last token.",
           histogram=lambda e: e.tally.e2e),
    Family("request_queue_time_seconds", "histogram", "From arrival to the batch.", histogram=lambda e: e.tally.queue),
    Family("request_inference_time_seconds", "histogram", "From the batch to the last token.",
           histogram=lambda e: e.tally.inference),
    Family("request_prefill_time_seconds", "histogram", "From the batch to the first token.",
           histogram=lambda e: e.tally.prefill),
    Family("request_decode_time_seconds", "histogram", "From the first token to the last.",
           histogram=lambda e: e.tally.decode),
    Family("request_num_preemptions", "histogram", "How often a request was preempted.",
           histogram=lambda e: e.tally.request_preemptions),
    Family("request_prefill_kv_computed_tokens", "histogram", "Prompt tokens that had to be computed.",
           histogram=lambda e: e.tally.kv_computed),
    Family("kv_block_lifetime_seconds", "histogram", "From a block's naming to its leaving.",
           histogram=lambda e: e.tally.block_lifetime, only_with_kv_cache_metrics=True),
    Family("kv_block_idle_before_evict_seconds", "histogram", "How long a block was not used before it left.",
           histogram=lambda e: e.tally.block_idle, only_with_kv_cache_metrics=True),
    Family("kv_block_reuse_gap_seconds", "histogram", "How long an idle block waited for its next use.",
           histogram=lambda e: e.tally.block_reuse, only_with_kv_cache_metrics=True),
)  # fmt: skip

_FIXED: Final = {
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


def cache_config(settings: Settings, engine: str) -> Labels:
    """The labels of `vllm:cache_config_info`, sorted: those that describe the cache are true, the rest as recorded."""
    tokens = settings.num_blocks * settings.block_size
    ours = {
        "block_size": str(settings.block_size),
        "effective_attention_block_size": str(settings.block_size),
        "engine": engine,
        "kv_cache_max_concurrency": repr(tokens / settings.max_model_len),
        "kv_cache_memory_bytes": str(tokens * 1024),
        "kv_cache_size_tokens": str(tokens),
        "num_gpu_blocks": str(settings.num_blocks),
        "num_gpu_blocks_override": str(settings.num_blocks),
    }
    return tuple(sorted((_FIXED | ours).items()))
