"""The rows on where requests go and what becomes of them."""

from __future__ import annotations

from typing import Final

from dashboards.panel import Panel, Query, Row
from dashboards.queries import INTO_EACH, RATE, SERVERS, UP, agent_rate, labelled, quantile, servers_rate


def _as_servers_count(title: str, question: str, ours: str, theirs: str) -> Panel:
    """A histogram of the servers' own, which the agent reads where it is asked to."""
    return Panel(
        title,
        f"{question} Shown where `scrape.histograms` names `{ours}`.",
        "s",
        tuple(
            Query(
                quantile(of, f"igw_endpoint_{ours}", 'pool=~"$pool"', "$__rate_interval"),
                legend,
                quantile(of, theirs, SERVERS, "$window"),
                within=RATE,
            )
            for of, legend in (("0.5", "p50"), ("0.9", "p90"))
        ),
    )


PREFIXES: Final = Row(
    "Routing: do requests go where their prefix is?",
    (
        Panel(
            "Prefix hits",
            "Which part of the prompt tokens did the servers find in their caches, by their own count?",
            "percentunit",
            (
                Query(
                    f"{agent_rate('igw_endpoint_prefix_hit_tokens_total', 'pool')}"
                    f" / {agent_rate('igw_endpoint_prefix_query_tokens_total', 'pool')}",
                    "{{pool}}",
                    f"{servers_rate('vllm:prefix_cache_hits_total')}"
                    f" / {servers_rate('vllm:prefix_cache_queries_total')}",
                    within=0.05,
                ),
            ),
            width=6,
        ),
        Panel(
            "Hit tokens, predicted and counted",
            "Is the agent's idea of the caches true? Predicted far above counted: caches forget more than it knows.",
            "none",
            (
                Query(
                    agent_rate("igw_endpoint_predicted_prefix_hit_tokens_total"),
                    "predicted by the index",
                    servers_rate("vllm:prefix_cache_hits_total"),
                    within=0.25,
                ),
                Query(
                    agent_rate("igw_endpoint_measured_prefix_hit_tokens_total"),
                    "counted by the servers",
                    servers_rate("vllm:prefix_cache_hits_total"),
                    within=RATE,
                ),
            ),
            width=6,
        ),
        Panel(
            "Gap of predicted and counted hits",
            "How far is the agent's idea of each server's cache from the truth, as a part of its prompt tokens?",
            "percentunit",
            (
                Query(
                    f"abs({agent_rate('igw_endpoint_predicted_prefix_hit_tokens_total', 'endpoint')}"
                    f" - {agent_rate('igw_endpoint_measured_prefix_hit_tokens_total', 'endpoint')})"
                    f" / {agent_rate('igw_endpoint_prefix_query_tokens_total', 'endpoint')}",
                    "{{endpoint}}",
                    f"0.25 * ({UP} == 1)",
                    bound="at_most",
                ),
            ),
            width=6,
        ),
        Panel(
            "Left the warmest server",
            "Which part of the picks went elsewhere than to the warmest cache, because that was too busy?",
            "percentunit",
            (
                Query(
                    f"{agent_rate('igw_picks_left_warmest_total', 'pool')} / {agent_rate('igw_picks_total', 'pool')}",
                    "{{pool}}",
                    "vector(1)",
                    bound="at_most",
                ),
            ),
            width=6,
        ),
        Panel(
            "Picks",
            "How are requests spread over the servers?",
            "reqps",
            (Query(agent_rate("igw_picks_total", "endpoint"), "{{endpoint}}", INTO_EACH, within=RATE),),
        ),
        Panel(
            "Requests finished",
            "How many requests does each server get done?",
            "reqps",
            (
                Query(
                    agent_rate("igw_endpoint_finished_requests_total", "endpoint"),
                    "{{endpoint}}",
                    servers_rate("vllm:request_success_total", "instance"),
                    within=RATE,
                ),
            ),
        ),
        Panel(
            "Tokens",
            "How many tokens do the servers read and write?",
            "none",
            (
                Query(
                    agent_rate("igw_endpoint_prompt_tokens_total"),
                    "prompt",
                    servers_rate("vllm:prompt_tokens_total"),
                    within=RATE,
                ),
                Query(
                    agent_rate("igw_endpoint_generation_tokens_total"),
                    "generated",
                    servers_rate("vllm:generation_tokens_total"),
                    within=RATE,
                ),
            ),
        ),
    ),
)

REQUESTS: Final = Row(
    "Requests: are users served?",
    (
        Panel(
            "Decided",
            "How many requests does the agent decide on, picked or refused, for each model?",
            "reqps",
            (
                Query(
                    "sum(rate(llm_d_epp_request_total[$__rate_interval]))",
                    "all models",
                    f"sum({INTO_EACH}) + $refused / $window_seconds",
                    within=RATE,
                ),
            ),
            width=6,
        ),
        Panel(
            "Refused",
            "How many requests does the agent refuse, and why? 4xx is the client's doing, 5xx is ours.",
            "reqps",
            (
                Query(
                    agent_rate("igw_requests_rejected_total", "status, reason"),
                    "{{status}} {{reason}}",
                    labelled("vector($refused / $window_seconds)", status="400", reason="invalid_json"),
                    within=RATE,
                ),
            ),
            width=6,
        ),
        Panel(
            "Duration",
            "How long do requests take from their pick to their end?",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({quantile},"
                    " sum by (le) (rate(llm_d_epp_request_duration_seconds_bucket[$__rate_interval])))",
                    f"p{quantile * 100:.0f}",
                    f"histogram_quantile({quantile}, sum by (le)"
                    f" (rate(vllm:e2e_request_latency_seconds_bucket{{{SERVERS}}}[$window])))",
                    within=0.6,  # the buckets of the two have other bounds
                )
                for quantile in (0.5, 0.9)
            ),
            width=6,
        ),
        Panel(
            "Time of a decision, p99",
            "Does the agent itself hold requests up?",
            "s",
            (
                Query(
                    "histogram_quantile(0.99,"
                    " sum by (le) (rate(llm_d_epp_scheduler_e2e_duration_seconds_bucket[$__rate_interval])))",
                    "p99",
                    "vector(0.1)",
                    bound="at_most",
                ),
            ),
            width=6,
            thresholds=(0.01,),
        ),
        _as_servers_count(
            "Time to the first token",
            "How long do requests wait at the servers until their answer begins?",
            "time_to_first_token_seconds",
            "vllm:time_to_first_token_seconds",
        ),
        _as_servers_count(
            "Time between tokens",
            "How fast do answers come?",
            "inter_token_latency_seconds",
            "vllm:inter_token_latency_seconds",
        ),
        _as_servers_count(
            "Time in the queue",
            "How much of the wait is for a place in the batch?",
            "queue_time_seconds",
            "vllm:request_queue_time_seconds",
        ),
    ),
)
