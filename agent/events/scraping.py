"""Scrapes of model servers, what they say of health, and the budget of scrapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.signals import Refusal


class ScrapeDone(NamedTuple):
    """A page was read and applied. `at` is the send time (monotonic), `took` the seconds from send to state."""

    pool: str
    endpoint: str
    at: float
    took: float
    size: int
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]


class ScrapeFailed(NamedTuple):
    """A scrape that changed nothing but health. `reason` is one of `agent.scrape.reasons.REASONS`."""

    pool: str
    endpoint: str
    at: float
    took: float
    reason: str
    detail: str


class HealthPathFailed(NamedTuple):
    """The engine's health path did not answer well. `reason` is one of `agent.state.health.HEALTH_REASONS`."""

    pool: str
    endpoint: str
    at: float
    took: float
    reason: str
    detail: str


class HealthChanged(NamedTuple):
    """An endpoint's health moved; `old` and `new` are values of `agent.state.health.Health`."""

    pool: str
    endpoint: str
    old: str
    new: str
    reason: str


class ServerRestarted(NamedTuple):
    """A new server answers under a known address: every old reading was dropped."""

    pool: str
    endpoint: str
    reason: str


class ScrapesPaced(NamedTuple):
    """A budget of scrapes was shared out: the intervals in seconds of endpoints at work and of those that stand still,
    how many these are, and which parts of the budget were used of late (`scrapes`, `cpu`)."""

    busy_interval: float
    busy: int
    idle_interval: float
    idle: int
    used: Mapping[str, float]


class BudgetChanged(NamedTuple):
    """There is another budget of scrapes, or none: what `ScrapesPaced` told holds no more."""


class BudgetOutgrown(NamedTuple):
    """From now on the fleet needs more than its budget to stay fresh, and takes it. `of`: `scrapes` (a second) or `cpu`
    (cores); `needed` is what it takes, `budget` what was configured."""

    of: str
    endpoints: int
    needed: float
    budget: float
