"""A row of the fault table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from tests.fakes.model_server import good
from tests.spec.environment import PLAIN, EnvironmentSetup
from tests.spec.expectations import CountedSeries, Expected
from tests.spec.scenario import PAGE, Outputs, Scenario

AT_ONCE = "at the first scrape"
AT_THIRD = "at the third failed scrape in a row"
AT_THIRD_PROBE = "at the third failed probe in a row (page or health)"
AT_FIRST_PROBE = "at the first health probe"
AT_THIRD_HEALTH = "at the third failed health probe in a row"
AT_STALE = "at the first scrape; missing signals are stale after `state.staleAfter`"


async def repaired(scenario: Scenario) -> None:
    """Make the server behave as before."""
    scenario.bad.page = PAGE
    await scenario.bad.switch(good)


class FaultRow(NamedTuple):
    """A fault: what the server does, when it takes effect, what each output then has, and which counters increase.

    `inject` causes the fault and returns the outputs before its full effect; `repair` ends it. `setup` is the
    environment of the endpoints.
    """

    fault: str
    description: str
    inject: Callable[[Scenario], Awaitable[Outputs]]
    takes_effect: str
    picker: Expected
    state: Expected
    gauges: Expected
    metrics: Expected
    counters: tuple[CountedSeries, ...]
    endpoints: int = 2
    setup: EnvironmentSetup = PLAIN
    repair: Callable[[Scenario], Awaitable[None]] = repaired
