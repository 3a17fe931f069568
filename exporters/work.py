"""The catalogue's rows of the agent's own work and of its process; `exporters.catalog` holds them with all others."""

from __future__ import annotations

from typing import Final

from exporters.metric import Metric, Rows

ROWS: Final = Rows()
_counter: Final = ROWS.count


def _histogram(name: str, unit: str, help: str, buckets: tuple[float, ...]) -> Metric:
    return ROWS.add(name, "histogram", unit, "pool", "events", help, (), buckets)


def _process(name: str, unit: str, help: str) -> None:
    ROWS.add(name, "counter" if name.endswith("_total") else "gauge", unit, "", "process", help)


PICKS: Final = _counter(
    "igw_picks_total", "requests", "pool profile endpoint", "Requests that were given to the endpoint"
)
PICK_PROMPT_TOKENS: Final = _counter(
    "igw_pick_prompt_tokens_total", "tokens", "pool", "Prompt tokens of the picked requests, estimated from their bytes"
)
PICK_HIT_TOKENS: Final = _counter(
    "igw_pick_predicted_hit_tokens_total",
    "tokens",
    "pool",
    "Part of these tokens that the index expected in the picked endpoint's cache",
)
LEFT_WARMEST: Final = _counter(
    "igw_picks_left_warmest_total",
    "requests",
    "pool",
    "Picks that left the endpoint with the most of the prompt in its cache, for load",
)
REFUSALS: Final = _counter(
    "igw_refusals_total",
    "requests",
    "pool status reason",
    "Requests that the agent answered itself, by HTTP status and reason",
)
ENDED: Final = _counter(
    "igw_requests_ended_total",
    "requests",
    "pool how",
    "Picked requests that ended: closed by the proxy, or lost by the agent",
)
ABANDONED: Final = _counter(
    "igw_requests_abandoned_total", "requests", "pool", "Requests that were over before there was a pick or a refusal"
)
SCRAPES: Final = _counter(
    "igw_scrapes_total", "scrapes", "pool result reason", "Scrapes by result (ok, failed) and the reason of the failure"
)
SCRAPE_DURATION: Final = _histogram(
    "igw_scrape_duration_seconds",
    "seconds",
    "Time from sending the request for a page to the page being applied",
    (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5),
)
PAGE_BYTES: Final = _histogram(
    "igw_scrape_page_bytes",
    "bytes",
    "Size of the pages that were read",
    (1024.0, 4096.0, 16384.0, 65536.0, 131072.0, 262144.0, 1048576.0, 4194304.0),
)
MISSING: Final = _counter(
    "igw_scrape_missing_signals_total", "pages", "pool signal", "Good pages that lack a signal of their engine's table"
)
VALUES_REFUSED: Final = _counter(
    "igw_scrape_refused_values_total",
    "values",
    "pool signal reason",
    "Values on good pages that cannot be true and were not let in",
)
STREAM_BREAKS: Final = _counter(
    "igw_stream_breaks_total", "streams", "pool reason", "ext_proc streams that broke the protocol or met an error"
)
_GOOD: Final = "1 where the configuration file was good when it was last read, 0 where it was refused"
RELOADS: Final = _counter("igw_reloads_total", "reloads", "result", "Readings of a changed configuration, ok or failed")
RELOAD_GOOD: Final = ROWS.add("igw_config_last_reload_successful", "gauge", "boolean", "", "events", _GOOD)
WATCHERS_DROPPED: Final = _counter(
    "igw_watchers_dropped_total", "watchers", "reason", "Readers of the admin address that were let go"
)

# -- the process, as prometheus_client reads it from /proc ------------------------------------------------------------

_process("process_cpu_seconds_total", "seconds", "CPU time that the agent has used, user and system")
_process("process_max_fds", "files", "File descriptors that the agent may open")
_process("process_open_fds", "files", "File descriptors that the agent has open")
_process("process_resident_memory_bytes", "bytes", "Resident memory of the agent")
_process("process_start_time_seconds", "seconds since 1970", "When the agent started")
_process("process_virtual_memory_bytes", "bytes", "Virtual memory of the agent")
