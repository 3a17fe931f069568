"""Scrapes of model servers, their health, and the scrape budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.signals import RefusedValue


class ScrapeDone(NamedTuple):
    """A page was read and applied. `at` is the send time (monotonic), `took` the seconds until it was applied."""

    pool: str
    endpoint: str
    at: float
    took: float
    size: int
    missing: tuple[str, ...]
    refused: tuple[RefusedValue, ...]


class ScrapeFailed(NamedTuple):
    """A scrape failed; it can change nothing but health. `reason` is one of `agent.scrape.reasons.REASONS`."""

    pool: str
    endpoint: str
    at: float
    took: float
    reason: str
    detail: str


class HealthPathFailed(NamedTuple):
    """A health probe failed. `reason` is one of `agent.state.health.HEALTH_REASONS`."""

    pool: str
    endpoint: str
    at: float
    took: float
    reason: str
    detail: str


class HealthChanged(NamedTuple):
    """An endpoint's health changed; `old` and `new` are values of `agent.state.health.Health`.

    If one of them is `blind`, `blind` of the pool's `endpoints` are now; else both are 0.
    """

    pool: str
    endpoint: str
    old: str
    new: str
    reason: str
    blind: int = 0
    endpoints: int = 0


class ServerRestarted(NamedTuple):
    """A new server was detected at a known address; all earlier readings were discarded."""

    pool: str
    endpoint: str
    reason: str


class CacheEmptied(NamedTuple):
    """The prefix cache of a known server is empty: the prefix index forgot its blocks. `reason` is one of
    `agent.state.endpoint.EMPTIED`."""

    pool: str
    endpoint: str
    reason: str


class ScrapesPaced(NamedTuple):
    """The scrape budget was distributed. Intervals are in seconds, `busy` and `idle` are numbers of endpoints, `used`
    is the recent use of each part of the budget (`scrapes`, `cpu`) as a ratio."""

    busy_interval: float
    busy: int
    idle_interval: float
    idle: int
    used: Mapping[str, float]


class BudgetChanged(NamedTuple):
    """The scrape budget was replaced or removed: the last `ScrapesPaced` is no longer valid."""


class BudgetExceeded(NamedTuple):
    """From now on the fleet uses more than its budget, because its readings would be stale otherwise.

    `resource`: `scrapes` (per second) or `cpu` (cores); `needed` is what it uses, `budget` what was configured.
    """

    resource: str
    endpoints: int
    needed: float
    budget: float
