"""Pieces of queries: rates of the agent's counters, and the same quantities on the model servers' own pages."""

from __future__ import annotations

from typing import Final

SERVERS: Final = 'job="servers"'
UP: Final = f"up{{{SERVERS}}}"
WAITING: Final = f"vllm:num_requests_waiting{{{SERVERS}}}"
RUNNING: Final = f"vllm:num_requests_running{{{SERVERS}}}"
KV: Final = f"vllm:kv_cache_usage_perc{{{SERVERS}}}"
# Prometheus asks the servers and the agent at different moments, and rate() carries what it saw on to the window's
# ends: of eight intervals in a window one more or less may have been seen on either side.
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
    """A quantile over all servers of a histogram that each of them keeps."""
    return f"histogram_quantile({of}, sum by (le) (rate({histogram}_bucket{{{where}}}[{window}])))"


def labelled(expr: str, **labels: str) -> str:
    """The expression with these labels on each of its series."""
    for name, value in labels.items():
        expr = f'label_replace({expr}, "{name}", "{value}", "", "")'
    return expr


# What goes into the servers: what they finished, and what has come to be in them since the window began.
INTO_EACH: Final = (
    f"({servers_rate('vllm:request_success_total', 'instance')}"
    f" + sum by (instance) ({RUNNING} + {WAITING}) / $window_seconds"
    f" - sum by (instance) ({RUNNING} offset $window + {WAITING} offset $window) / $window_seconds)"
)
