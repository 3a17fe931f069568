"""Flow control does what a second implementation does, which searches lists, on random histories."""

from __future__ import annotations

import math
from typing import assert_never

from hypothesis import given, settings

from agent.flow.control import FlowLimits
from tests.flow.histories import (
    ADDRESSES,
    Arrives,
    Driver,
    Endpoints,
    Leaves,
    Named,
    Offered,
    Passes,
    Step,
    by_kind,
    histories,
    limits,
    name_of,
)
from tests.flow.naive import NaiveControl, NaiveOutcome, NaiveRequest


def naive_step(
    naive: NaiveControl, driver: Driver, step: Step, costs: dict[str, dict[str, float]]
) -> list[NaiveOutcome]:
    """The same step; the driver has done it."""
    now = driver.now
    match step:
        case Arrives():
            request = driver.requests[-1]
            ttl = naive.limits.of(step.priority).ttl if step.ttl is None else step.ttl
            item = request.item
            assert isinstance(item, Named)
            costs[item.name] = item.costs
            deadline = math.inf if step.deadline_in is None else now + step.deadline_in
            return naive.submit(
                NaiveRequest(
                    item.name,
                    step.priority,
                    step.flow,
                    step.tokens,
                    step.prompt_tokens,
                    step.size,
                    deadline,
                    0.0,
                    ttl,
                ),
                item.costs,
                now,
            )
        case Offered():
            return naive.offer(step.address, driver.room(step), now)
        case Leaves(which):
            return naive.cancel(str(which), now) if which < len(driver.requests) else naive.advance(now)
        case Endpoints(addresses):
            naive.set_endpoints(list(addresses), now)
            return naive.replan(costs, now)
        case Passes():
            return naive.advance(now)
        case _:
            assert_never(step)


@settings(max_examples=400)
@given(histories, limits)
def test_flow_control_equals_the_naive_one(history: list[tuple[float, Step]], flow_limits: FlowLimits) -> None:
    driver, naive = Driver(flow_limits), NaiveControl(flow_limits)
    costs: dict[str, dict[str, float]] = {}
    for passed, step in [(0.0, Endpoints(ADDRESSES)), *history]:
        found = by_kind(driver.take(passed, step))
        expected = naive_step(naive, driver, step, costs)
        assert found[0] == [each for each in expected if each[1]]
        assert found[1] == sorted(each for each in expected if not each[1])
        waiting = [(name_of(request), request.endpoint) for request in driver.waiting()]
        assert waiting == [(request.name, request.planned) for request in naive.waiting]
