"""The row about requests that wait in the agent."""

from __future__ import annotations

from typing import Final

from dashboards.panel import DashboardRow, Panel, Query
from dashboards.queries import INTO_EACH, RUNNING, WAITING, labelled

_AT_SERVERS: Final = f"sum({RUNNING} + {WAITING})"
_WAITED: Final = 'pool=~"$pool", outcome=~"planned|stolen"'
MAX_REQUEST_TOKENS: Final = 6_000  # of a request to the test's servers (max-model-len)


def _by_priority(normal: str, negative: str) -> str:
    """A truth for the bands of priority 0 and -1."""
    return f"{labelled(normal, priority='0')} or {labelled(negative, priority='-1')}"


def _outcomes(outcomes: str, legend: str, truth: str) -> Query:
    rate = f'sum(rate(igw_flow_requests_total{{pool=~"$pool", outcome=~"{outcomes}"}}[$__rate_interval]))'
    return Query(f"{rate} or vector(0)", legend, truth, bound="at_most")


FLOW: Final = DashboardRow(
    "Flow control: who waits, and for how long?",
    (
        Panel(
            "Waiting in the agent",
            "How many requests of each priority wait for an endpoint that has room?",
            "none",
            (
                Query(
                    'sum by (priority) (igw_flow_queued_requests{pool=~"$pool"})',
                    "priority {{priority}}",
                    _by_priority(f"vector($in_flight) - {_AT_SERVERS}", "vector(0)"),
                ),
            ),
        ),
        Panel(
            "Oldest wait",
            "For how long does the oldest request of each priority wait? At its TTL it is refused.",
            "s",
            (
                Query(
                    'max by (priority) (igw_flow_oldest_wait_seconds{pool=~"$pool"})',
                    "priority {{priority}}",
                    _by_priority("vector($window_seconds)", "vector(0)"),
                    bound="at_most",
                ),
            ),
            thresholds=(10, 60),
        ),
        Panel(
            "Saturation",
            "Which part of what is scarcest (slots, wait, KV cache) is used? Requests wait at 1, mean over endpoints.",
            "percentunit",
            (
                Query(
                    'igw_flow_saturation_ratio{pool=~"$pool"}',
                    "{{pool}}",
                    f"avg({RUNNING} + {WAITING}) / 6",  # the test's detector allows six requests at a server
                ),
            ),
            thresholds=(0.8, 1),
        ),
        Panel(
            "Outcomes",
            "What becomes of requests that found no room? Expired: they waited for their whole TTL.",
            "reqps",
            (
                _outcomes("direct|planned|stolen", "dispatched", f"1.25 * sum({INTO_EACH})"),
                _outcomes("shed|displaced", "shed", "vector(0)"),
                _outcomes("expired", "expired", "vector(0)"),
                _outcomes("no_endpoints|cancelled|shutting_down", "others", "vector(0)"),
            ),
        ),
        Panel(
            "Wait of dispatched requests",
            "How long did the requests wait that had to, until they went to a server?",
            "s",
            tuple(
                Query(
                    f"histogram_quantile({of}, sum by (le) (rate(igw_flow_wait_seconds_bucket{{{_WAITED}}}"
                    "[$__rate_interval])))",
                    legend,
                    "vector($window_seconds)",
                    bound="at_most",
                )
                for of, legend in ((0.5, "p50"), (0.9, "p90"))
            ),
        ),
        Panel(
            "Probability of shedding",
            "With which probability is a request of a negative priority refused now?",
            "percentunit",
            (
                Query(
                    'max by (priority) (igw_flow_shed_probability_ratio{pool=~"$pool"})',
                    "priority {{priority}}",
                    labelled("vector(1)", priority="-1"),
                    bound="at_most",
                ),
            ),
            thresholds=(0.5,),
        ),
        Panel(
            "Callers that wait longest",
            "For how long does the oldest request of each caller wait? One far above the others is starved.",
            "s",
            (
                Query(
                    'topk(10, max by (fairness_id) (igw_flow_caller_oldest_wait_seconds{pool=~"$pool"}))',
                    "{{fairness_id}}",
                    labelled("vector($window_seconds)", fairness_id="default-flow"),
                    bound="at_most",
                ),
            ),
            width=12,
        ),
        Panel(
            "Tokens dispatched by caller",
            "How is the pool shared? Callers of one priority that wait get equal parts.",
            "none",
            (
                Query(
                    "topk(10, sum by (fairness_id)"
                    ' (rate(igw_flow_dispatched_tokens_total{pool=~"$pool"}[$__rate_interval])))',
                    "{{fairness_id}}",
                    labelled(f"1.25 * {MAX_REQUEST_TOKENS} * sum({INTO_EACH})", fairness_id="default-flow"),
                    bound="at_most",
                ),
            ),
            width=12,
        ),
    ),
)
