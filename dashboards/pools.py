"""The rows about the health and load of pools and of their endpoints."""

from __future__ import annotations

from typing import Final

from dashboards.panel import DashboardRow, Panel, Query
from dashboards.queries import KV, RATE, RUNNING, UP, WAITING, agent_rate, labelled, servers_rate

POOLS: Final = DashboardRow(
    "Pools: are they healthy?",
    (
        Panel(
            "Ready endpoints",
            "How many model servers may get requests, healthy or blind? With 0, every request is rejected.",
            "none",
            (
                Query(
                    'sum by (pool) (igw_pool_endpoints_by_health{pool=~"$pool", state=~"healthy|blind"})',
                    "{{pool}}",
                    f"sum({UP})",
                ),
            ),
            width=4,
            type="stat",
            thresholds=(1,),
        ),
        Panel(
            "Endpoints by health",
            "How many endpoints are blind, stale, down, failing or unknown?",
            "none",
            (
                Query(
                    'sum by (state) (igw_pool_endpoints_by_health{pool=~"$pool"})',
                    "{{state}}",
                    " or ".join(
                        (
                            labelled(f"sum({UP})", state="healthy"),
                            labelled(f"sum(1 - {UP})", state="down"),
                            labelled("vector(0)", state="failing"),
                            labelled("vector(0)", state="blind"),
                            labelled("vector(0)", state="stale"),
                            labelled("vector(0)", state="unknown"),
                        )
                    ),
                ),
            ),
        ),
        Panel(
            "Saturation",
            "Is a pool saturated? 1 is five waiting requests or 80 % of the KV cache, averaged over its endpoints.",
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
            "Waiting requests, mean over endpoints",
            "Which value does an autoscaler read that scales on the queue? Absent without a fresh reading.",
            "none",
            (Query('llm_d_epp_average_queue_size{name=~"$pool"}', "{{name}}", f"avg({WAITING})"),),
        ),
        Panel(
            "KV cache in use, mean over endpoints",
            "Which value does an autoscaler read that scales on the KV cache?",
            "percentunit",
            (Query('llm_d_epp_average_kv_cache_utilization{name=~"$pool"}', "{{name}}", f"avg({KV})", within=0.05),),
            thresholds=(0.9,),
        ),
        Panel(
            "Requests at the servers",
            "How many requests are running and waiting, at all endpoints with a fresh reading?",
            "none",
            (
                Query('sum(igw_pool_running_requests{pool=~"$pool"})', "running", f"sum({RUNNING})"),
                Query('sum(igw_pool_waiting_requests{pool=~"$pool"})', "waiting", f"sum({WAITING})"),
            ),
        ),
    ),
)

ENDPOINTS: Final = DashboardRow(
    "Endpoints: which one differs?",
    (
        Panel(
            "Waiting requests",
            "Does one server lag behind the others?",
            "none",
            (Query('igw_endpoint_waiting_requests{pool=~"$pool"}', "{{server}}", WAITING),),
        ),
        Panel(
            "Running requests",
            "How large is each server's batch?",
            "none",
            (Query('igw_endpoint_running_requests{pool=~"$pool"}', "{{server}}", RUNNING),),
        ),
        Panel(
            "KV cache in use",
            "Which server is about to preempt requests (KV cache full)?",
            "percentunit",
            (Query('igw_endpoint_kv_usage_ratio{pool=~"$pool"}', "{{server}}", KV, within=0.05),),
            thresholds=(0.9,),
        ),
        Panel(
            "Accelerators busy",
            "Are each endpoint's accelerators in use? The value is time with any work: one request is enough.",
            "percentunit",
            (
                Query(
                    'igw_endpoint_accelerator_utilization_ratio{pool=~"$pool"}',
                    "{{server}} {{source}}",
                    f"0.9 + 0.1 * {RUNNING} / 4",  # the emulated device's utilization for a batch of at most four
                    within=0.02,
                ),
            ),
        ),
        Panel(
            "Unhealthy accelerators",
            "Which endpoint is out of service because of its accelerators?",
            "none",
            (
                Query(
                    'igw_endpoint_accelerators_unhealthy{pool=~"$pool"}',
                    "{{server}} {{source}}",
                    f"0 * {RUNNING}",
                ),
            ),
            thresholds=(1,),
        ),
        Panel(
            "In flight, counted by the agent",
            "How many requests assigned to each server have not ended? If there are more than running and waiting ones,"
            " some are on their way; if there are fewer, other clients use the server too.",
            "none",
            (
                Query(
                    'igw_endpoint_in_flight_requests{pool=~"$pool"} > 0',
                    "{{server}}",
                    f"({RUNNING} + {WAITING}) > 0",
                ),
            ),
        ),
        Panel(
            "Prefill backlog",
            "How long would a new request wait for prefill at each server, as estimated?",
            "s",
            (
                Query(
                    'igw_endpoint_prefill_backlog_seconds{pool=~"$pool"}'
                    ' and on (pool, server) igw_endpoint_health{state="healthy"} == 1',
                    "{{server}}",
                    f"30 * ({RUNNING} + {WAITING})",  # an estimate: bounded by the number of requests, 0 without any
                    bound="at_most",
                ),
            ),
        ),
        Panel(
            "Preemptions",
            "Do servers preempt requests (KV cache full)?",
            "ops",
            (
                Query(
                    agent_rate("igw_endpoint_preemptions_total", "server"),
                    "{{server}}",
                    servers_rate("vllm:num_preemptions_total", "instance"),
                    within=RATE,
                ),
            ),
        ),
    ),
)
