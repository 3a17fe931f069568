"""What happened, as frozen values: the pure core returns or emits these; hooks turn them into counts and log lines.

No pure module holds a logger or a counter. A hook must be cheap, must not raise and must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


class DevicesRead(NamedTuple):
    """A page of an accelerator exporter was read; as `ScrapeDone`, for the exporter at an address."""

    source: str
    exporter: str
    at: float
    took: float
    size: int
    missing: tuple[str, ...]
    refused: tuple[Refusal, ...]


class DevicesFailed(NamedTuple):
    """An accelerator exporter brought no page. `reason` is one of `agent.scrape.reasons.REASONS`, or `client_error`."""

    source: str
    exporter: str
    at: float
    took: float
    reason: str
    detail: str


class DeviceHealthChanged(NamedTuple):
    """An accelerator fell sick (`reason` is one of `agent.accelerators.faults.FAULTS`), or is well (no reason)."""

    source: str
    exporter: str
    device: str
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


class Picked(NamedTuple):
    """A request was given an endpoint. `took` is the seconds that the decision cost."""

    pool: str
    profile: str
    model: str
    endpoint: str
    prompt_tokens: int
    predicted_hit_tokens: int
    left_warmest: bool
    took: float


class Refused(NamedTuple):
    """A request was answered by us, not by a model server: the HTTP status and the reason (one word)."""

    pool: str
    model: str
    status: int
    reason: str


class Reported(NamedTuple):
    """A load report came with an answer: taken where `reason` is empty, else one of `agent.engines.report.REASONS`."""

    pool: str
    endpoint: str
    reason: str


class Ended(NamedTuple):
    """A picked request is over. `how` is `closed` (the ext_proc stream ended) or `lost` (the agent let go of it)."""

    pool: str
    model: str
    endpoint: str
    took: float
    how: str


class Abandoned(NamedTuple):
    """A request that was over before it was picked for or refused: its client left, or the proxy refused its body."""

    pool: str


class StreamBroken(NamedTuple):
    """An ext_proc conversation that ended against the protocol or on an error of ours; the reason is one word. `http2`:
    a whole connection did."""

    pool: str
    reason: str
    detail: str


class Reloaded(NamedTuple):
    """The configuration was read again: `ok` and what changed, or not `ok` and what is wrong with it.

    `no_file`: there was nothing to read, so that what runs is behind nothing.
    """

    ok: bool
    detail: str
    no_file: bool = False


class WatcherDropped(NamedTuple):
    """A reader of the shared state endpoint was let go, and why (`slow`, `too_many`, `too_large`)."""

    reason: str


Event = (
    ScrapeDone
    | ScrapeFailed
    | DevicesRead
    | DevicesFailed
    | DeviceHealthChanged
    | HealthPathFailed
    | HealthChanged
    | ServerRestarted
    | Picked
    | Refused
    | Reported
    | Ended
    | Abandoned
    | StreamBroken
    | Reloaded
    | ScrapesPaced
    | BudgetChanged
    | BudgetOutgrown
    | WatcherDropped
)
Hook = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The hook of those who want none."""
