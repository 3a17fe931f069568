"""The rows on how pools and their endpoints are."""

from __future__ import annotations

from typing import Final

from dashboards.panel import Panel, Query, Row
from dashboards.queries import KV, RATE, RUNNING, UP, WAITING, agent_rate, labelled, servers_rate

POOLS: Final = Row(
    "Pools: are they well?",
    (
        Panel(
            "Endpoints that can be picked",
            "How many model servers may get requests? 0 means that every request is refused.",
            "none",
            (
                Query(
                    'sum by (pool) (igw_pool_endpoints_by_health{pool=~"$pool", state="healthy"})',
                    "{{pool}}",
                    f"sum({UP})",
                ),
            ),
            width=4,
            kind="stat",
            thresholds=(1,),
        ),
        Panel(
            "Endpoints by health",
            "Which part of the fleet is stale, down or not yet seen?",
            "none",
            (
                Query(
                    'sum by (state) (igw_pool_endpoints_by_health{pool=~"$pool"})',
                    "{{state}}",
                    " or ".join(
                        (
                            labelled(f"sum({UP})", state="healthy"),
                            labelled(f"sum(1 - {UP})", state="down"),
                            labelled("vector(0)", state="stale"),
                            labelled("vector(0)", state="unknown"),
                        )
                    ),
                ),
            ),
        ),
        Panel(
            "Saturation",
            "Is a pool full? 1 is five waiting requests or 80 % of the KV cache, on the mean of its endpoints.",
            "percentunit",
            (
                Query(
                    'llm_d_epp_flow_control_pool_saturation{inference_pool=~"$pool"}',
                    "{{inference_pool}}",
                    f"avg(({WAITING} / 5 > {KV} / 0.8) or {KV} / 0.8)",
                ),
            ),
            width=12,
            thresholds=(0.8, 1),
        ),
        Panel(
            "Waiting requests, mean of the endpoints",
            "What does an autoscaler see that scales on the queue? Absent: no endpoint has told lately.",
            "none",
            (Query('llm_d_epp_average_queue_size{name=~"$pool"}', "{{name}}", f"avg({WAITING})"),),
        ),
        Panel(
            "KV cache in use, mean of the endpoints",
            "What does an autoscaler see that scales on the KV cache?",
            "percentunit",
            (Query('llm_d_epp_average_kv_cache_utilization{name=~"$pool"}', "{{name}}", f"avg({KV})", within=0.05),),
            thresholds=(0.9,),
        ),
        Panel(
            "Requests at the servers",
            "How much work is there, running and waiting, over all endpoints that have told lately?",
            "none",
            (
                Query('sum(igw_pool_running_requests{pool=~"$pool"})', "running", f"sum({RUNNING})"),
                Query('sum(igw_pool_waiting_requests{pool=~"$pool"})', "waiting", f"sum({WAITING})"),
            ),
        ),
    ),
)

ENDPOINTS: Final = Row(
    "Endpoints: which one is it?",
    (
        Panel(
            "Waiting requests",
            "Is one server behind the others?",
            "none",
            (Query('igw_endpoint_waiting_requests{pool=~"$pool"}', "{{endpoint}}", WAITING),),
        ),
        Panel(
            "Running requests",
            "How large is each server's batch?",
            "none",
            (Query('igw_endpoint_running_requests{pool=~"$pool"}', "{{endpoint}}", RUNNING),),
        ),
        Panel(
            "KV cache in use",
            "Which server is about to preempt requests for room?",
            "percentunit",
            (Query('igw_endpoint_kv_usage_ratio{pool=~"$pool"}', "{{endpoint}}", KV, within=0.05),),
            thresholds=(0.9,),
        ),
        Panel(
            "Accelerators busy",
            "Does anything run on each endpoint's accelerators? It says busy, not how busy: one request is enough.",
            "percentunit",
            (
                Query(
                    'igw_endpoint_accelerator_utilization_ratio{pool=~"$pool"}',
                    "{{endpoint}} {{source}}",
                    f"0.9 + 0.1 * {RUNNING} / 4",  # what the emulated device makes of a batch of at most four
                    within=0.02,
                ),
            ),
        ),
        Panel(
            "Sick accelerators",
            "Which endpoint is out of service because of what it runs on?",
            "none",
            (
                Query(
                    'igw_endpoint_accelerators_unhealthy{pool=~"$pool"}',
                    "{{endpoint}} {{source}}",
                    f"0 * {RUNNING}",
                ),
            ),
            thresholds=(1,),
        ),
        Panel(
            "In flight, by the agent's own count",
            "How many requests has the agent given to each server that have not ended? More than the server's own"
            " running and waiting means that they are on their way; less, that somebody else sends to it too.",
            "none",
            (
                Query(
                    'igw_endpoint_in_flight_requests{pool=~"$pool"} > 0',
                    "{{endpoint}}",
                    f"({RUNNING} + {WAITING}) > 0",
                ),
            ),
        ),
        Panel(
            "Prefill ahead",
            "How long would a request wait for its first token at each server, as the agent reckons?",
            "s",
            (
                Query(
                    'igw_endpoint_prefill_backlog_seconds{pool=~"$pool"}'
                    ' and on (pool, endpoint) igw_endpoint_health{state="healthy"} == 1',
                    "{{endpoint}}",
                    f"30 * ({RUNNING} + {WAITING})",  # an estimate: bounded by what is there, and 0 where nothing is
                    bound="at_most",
                ),
            ),
        ),
        Panel(
            "Preemptions",
            "Do servers throw requests out of their batch for want of KV cache?",
            "ops",
            (
                Query(
                    agent_rate("igw_endpoint_preemptions_total", "endpoint"),
                    "{{endpoint}}",
                    servers_rate("vllm:num_preemptions_total", "instance"),
                    within=RATE,
                ),
            ),
        ),
    ),
)
