"""The row about the freshness of the data, and about the agent itself."""

from __future__ import annotations

from typing import Final

from dashboards.panel import DashboardRow, Panel, Query
from dashboards.queries import RATE, UP, labelled

FRESHNESS: Final = DashboardRow(
    "Freshness: is the data current?",
    (
        Panel(
            "Age of the last page",
            "How old is the last page of each server? A rising line is a server that does not respond.",
            "s",
            (
                Query(
                    'igw_endpoint_page_age_seconds{pool=~"$pool"}',
                    "{{server}}",
                    f"3 * ({UP} == 1)",
                    bound="at_most",
                ),
            ),
            thresholds=(3,),
        ),
        Panel(
            "Coverage",
            "Which share of the endpoints enters the pool's means and sums?",
            "percentunit",
            (
                Query(
                    'min by (signal) (igw_pool_coverage_ratio{pool=~"$pool"})',
                    "{{signal}}",
                    " or ".join(
                        labelled(f"avg({UP})", signal=signal)
                        for signal in ("waiting_requests", "running_requests", "kv_usage_ratio")
                    ),
                ),
            ),
            thresholds=(0.5, 1),
        ),
        Panel(
            "Blind share",
            "Which share of a pool answers without readable metrics? It is picked by requests in flight alone.",
            "percentunit",
            (
                Query(
                    'max by (pool) (igw_pool_blind_ratio{pool=~"$pool"})',
                    "{{pool}}",
                    f"0 * sum({UP})",
                ),
            ),
            thresholds=(0.01, 0.5),
        ),
        Panel(
            "Gauges withheld from autoscalers",
            "Which gauges are absent because their value is unknown, and why? An autoscaler then does not scale.",
            "none",
            (
                Query(
                    'sum by (gauge, reason) (igw_withheld_gauges{gauge=~"llm_d_epp_.*"})',
                    "{{gauge}} {{reason}}",
                    labelled(f"sum(1 - {UP})", gauge="llm_d_epp_per_endpoint_queue_size", reason="down"),
                ),
            ),
        ),
        Panel(
            "Scrapes",
            "Do scrapes succeed?",
            "ops",
            (
                Query(
                    'sum(rate(igw_scrapes_total{pool=~"$pool", result="ok"}[$__rate_interval]))',
                    "ok",
                    f"sum({UP}) / $interval_seconds",
                    within=RATE,
                ),
                Query(
                    'sum by (reason) (rate(igw_scrapes_total{pool=~"$pool", result="failed"}[$__rate_interval]))',
                    "failed: {{reason}}",
                    labelled(f"sum(1 - {UP}) / $interval_seconds", reason="refused"),
                    bound="at_most",
                ),
            ),
        ),
        Panel(
            "Scrape interval under a budget",
            "Are servers scraped less often because of scrape.budget? Without a budget there is no line.",
            "s",
            (
                Query('max(igw_scrape_interval_seconds{activity="idle"})', "idle servers", "vector($interval_seconds)"),
                Query('max(igw_scrape_interval_seconds{activity="busy"})', "busy servers", "vector($interval_seconds)"),
            ),
        ),
        Panel(
            "Scrape duration, p99",
            "Do servers take long to render their pages?",
            "s",
            (
                Query(
                    "histogram_quantile(0.99,"
                    ' sum by (le) (rate(igw_scrape_duration_seconds_bucket{pool=~"$pool"}[$__rate_interval])))',
                    "p99",
                    "vector(2.5)",
                    bound="at_most",
                ),
            ),
        ),
        Panel(
            "CPU of the agent",
            "How much CPU does the agent use?",
            "percentunit",
            (
                Query(
                    "sum(rate(process_cpu_seconds_total[$__rate_interval]) and on (job, instance) igw_reloads_total)",
                    "CPU cores",
                    "vector($agent_cpu_ratio)",
                    within=0.5,
                ),
            ),
            width=4,
        ),
        Panel(
            "Memory of the agent",
            "Is the agent's memory usage stable?",
            "bytes",
            (
                Query(
                    "sum(process_resident_memory_bytes and on (job, instance) igw_reloads_total)",
                    "resident",
                    "vector($agent_resident_bytes)",
                    within=0.1,
                ),
            ),
            width=4,
        ),
    ),
)
