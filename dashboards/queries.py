"""Parts of queries: rates of the agent's counters, and the same quantities on the model servers' own pages."""

from __future__ import annotations

from typing import Final

SERVERS: Final = 'job="servers"'
UP: Final = f"up{{{SERVERS}}}"
WAITING: Final = f"vllm:num_requests_waiting{{{SERVERS}}}"
RUNNING: Final = f"vllm:num_requests_running{{{SERVERS}}}"
KV: Final = f"vllm:kv_cache_usage_perc{{{SERVERS}}}"
# Prometheus scrapes the servers and the agent at different times, and rate() extrapolates to the ends of the window: of
# eight intervals in a window, the two jobs may differ by one on either side.
RATE: Final = 0.25


def agent_rate(counter: str, by: str = "") -> str:
    """The rate of a counter of the agent, summed."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f'{grouped}(rate({counter}{{pool=~"$pool"}}[$__rate_interval]))'


def servers_rate(counter: str, by: str = "") -> str:
    """The rate of a counter of the servers, summed."""
    grouped = f"sum by ({by}) " if by else "sum"
    return f"{grouped}(rate({counter}{{{SERVERS}}}[$window]))"


def quantile(of: str, histogram: str, where: str, window: str) -> str:
    """A quantile of a histogram, aggregated over all servers."""
    return f"histogram_quantile({of}, sum by (le) (rate({histogram}_bucket{{{where}}}[{window}])))"


def labelled(expr: str, **labels: str) -> str:
    """The expression with these labels added to each of its series."""
    for name, value in labels.items():
        expr = f'label_replace({expr}, "{name}", "{value}", "", "")'
    return expr


# Arrival rate at each server: its finished requests, and the change of its running and waiting ones over the window.
INTO_EACH: Final = (
    f"({servers_rate('vllm:request_success_total', 'instance')}"
    f" + sum by (instance) ({RUNNING} + {WAITING}) / $window_seconds"
    f" - sum by (instance) ({RUNNING} offset $window + {WAITING} offset $window) / $window_seconds)"
)
