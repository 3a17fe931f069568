"""`prefillRate`: the estimate of how fast a server prefills."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import Number


@dataclass(frozen=True, slots=True)
class PrefillRateConfig:
    """The prefill rate of an endpoint, in uncached prompt tokens per second."""

    fixed: float | None = option(
        Number(1, 1e9), "use this rate and estimate none", None, unset="estimated per endpoint"
    )
    default: float = option(Number(1, 1e9), "the rate until there is an estimate", 15_928.0)
    low: float = option(Number(1, 1e9), "min estimate", 100.0)
    high: float = option(Number(1, 1e9), "max estimate", 1_000_000.0)
