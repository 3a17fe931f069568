"""The rows about routing and the results of requests."""

from __future__ import annotations

from typing import Final

from dashboards.panel import DashboardRow, Panel, Query
from dashboards.queries import INTO_EACH, RATE, SERVERS, UP, agent_rate, labelled, quantile, servers_rate


def _as_servers_count(title: str, question: str, ours: str, theirs: str) -> Panel:
    """A panel of a histogram that the servers keep, which the agent exports if it is configured to."""
    return Panel(
        title,
        f"{question} Only with `{ours}` in `scrape.histograms`.",
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


PREFIXES: Final = DashboardRow(
    "Routing: do requests reach servers that have their prefix?",
    (
        Panel(
            "Prefix hits",
            "Which share of the prompt tokens did the servers find in their caches, as counted by them?",
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
            "Hit tokens, predicted and measured",
            "Does the prefix index match the caches? Predicted far above measured: servers evict more.",
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
                    "measured by the servers",
                    servers_rate("vllm:prefix_cache_hits_total"),
                    within=RATE,
                ),
            ),
            width=6,
        ),
        Panel(
            "Gap between predicted and measured hits",
            "How far is the prefix index from each server's cache, as a share of its prompt tokens?",
            "percentunit",
            (
                Query(
                    f"abs({agent_rate('igw_endpoint_predicted_prefix_hit_tokens_total', 'server')}"
                    f" - {agent_rate('igw_endpoint_measured_prefix_hit_tokens_total', 'server')})"
                    f" / {agent_rate('igw_endpoint_prefix_query_tokens_total', 'server')}",
                    "{{server}}",
                    f"0.25 * ({UP} == 1)",
                    bound="at_most",
                ),
            ),
            width=6,
        ),
        Panel(
            "Picks away from the warmest server",
            "Which share of the picks did not go to the server with the warmest cache, because it was too busy?",
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
            "How are requests distributed over the servers?",
            "reqps",
            (Query(agent_rate("igw_picks_total", "server"), "{{server}}", INTO_EACH, within=RATE),),
        ),
        Panel(
            "Requests finished",
            "How many requests does each server finish?",
            "reqps",
            (
                Query(
                    agent_rate("igw_endpoint_finished_requests_total", "server"),
                    "{{server}}",
                    servers_rate("vllm:request_success_total", "instance"),
                    within=RATE,
                ),
            ),
        ),
        Panel(
            "Tokens",
            "How many tokens do the servers process and generate?",
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

REQUESTS: Final = DashboardRow(
    "Requests: are they served?",
    (
        Panel(
            "Decisions",
            "How many requests does the agent decide on, picked or rejected?",
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
            "Rejected",
            "How many requests does the agent reject, and why? 4xx is caused by the client, 5xx is not.",
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
            "Responses",
            "What do the model servers answer, as the proxy reports it? A server whose requests fail is ejected.",
            "reqps",
            (
                Query(
                    agent_rate("igw_responses_total", "result"),
                    "{{result}}",
                    labelled(servers_rate("vllm:request_success_total"), result="ok"),
                    within=RATE,
                ),
            ),
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
                    within=0.6,  # the two histograms have different buckets
                )
                for quantile in (0.5, 0.9)
            ),
            width=6,
        ),
        Panel(
            "Decision duration, p99",
            "Does the agent itself delay requests?",
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
            "How long do requests wait at the servers for their first token?",
            "time_to_first_token_seconds",
            "vllm:time_to_first_token_seconds",
        ),
        _as_servers_count(
            "Time between tokens",
            "How fast do responses stream?",
            "inter_token_latency_seconds",
            "vllm:inter_token_latency_seconds",
        ),
        _as_servers_count(
            "Time in the queue",
            "How long do requests wait at the servers to be scheduled?",
            "queue_time_seconds",
            "vllm:request_queue_time_seconds",
        ),
    ),
)
