"""`scrape`: when and how model servers are scraped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.config.options import option, section
from agent.config.values import Duration, Number, Size, UrlPath, WordList
from agent.signals import HISTOGRAMS

MIN_INTERVAL: Final = 0.05
MIN_MODELS_INTERVAL: Final = 1.0
# A reading is stale after this many intervals: two scrapes may fail or be late.
STALE_AFTER_INTERVALS: Final = 3


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """What scraping model servers may cost. With a budget that is too small for `interval`, idle servers are scraped
    less often."""

    scrapes_per_second: float | None = option(
        Number(0.1, 1_000_000),
        "max scrapes of model servers per second, of all pools together",
        None,
        unset="unlimited",
    )
    cpu: float | None = option(
        Number(0.001, 64), "max CPU cores of the process, for all its work", None, unset="unlimited"
    )

    @property
    def is_set(self) -> bool:
        """Whether scrapes are limited."""
        return self.scrapes_per_second is not None or self.cpu is not None


@dataclass(frozen=True, slots=True)
class ScrapeConfig:
    """How the metrics of model servers are scraped."""

    interval: float = option(Duration(MIN_INTERVAL, 3600), "time between two scrapes of an endpoint", 1.0)
    timeout: float = option(Duration(0.01, 60), "time limit of a scrape, until the last byte of the response", 1.0)
    path: str | None = option(
        UrlPath(),
        "path of the metrics",
        None,
        unset="the engine's",
        default_text="the engine's: `/metrics`, of `trtllm-serve` `/prometheus/metrics`",
    )
    max_page_bytes: int = option(Size(1024, 256 << 20), "a longer response is refused", 4 << 20)
    models_interval: float = option(
        Duration(MIN_MODELS_INTERVAL, 3600), "time between two requests for the list of served models", 10.0
    )
    histograms: tuple[str, ...] = option(
        WordList(tuple(sorted(HISTOGRAMS))),
        f"histograms to read and export beside the signals: {', '.join(f'`{name}`' for name in sorted(HISTOGRAMS))}",
        (),
        unset="none",
    )
    health_interval: float = option(Duration(0.1, 3600), "time between two probes of the engine's health path", 1.0)
    budget: BudgetConfig = section(BudgetConfig, "Limits of what scraping may cost.")
