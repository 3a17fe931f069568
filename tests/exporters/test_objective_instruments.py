"""Unknown objectives and flow headers that are not used: counted each time, logged once or once a minute."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from agent.events.objectives import FlowHeaderIgnored
from agent.instruments.event_log import LOGGER
from agent.instruments.hook import Instruments
from agent.instruments.log_format import write_log
from agent.requests.flow_headers import FlowHeaderRules, read_flow_headers
from agent.requests.flow_terms import FlowHeaders
from agent.requests.objectives import REMEMBERED_NAMES, RequestTerms
from tests.fakes.clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1000.0)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = write_log(stream)
    yield stream
    logging.getLogger(LOGGER).removeHandler(handler)


def count(instruments: Instruments, name: str, **labels: str) -> float | None:
    return instruments.registry.get_sample_value(name, {"pool": "chat", **labels})


def test_an_unknown_objective_is_counted_each_time_and_named_once(clock: ManualClock, log: io.StringIO) -> None:
    instruments = Instruments(clock)
    terms = RequestTerms("chat", instruments)
    for name in ("typo", "typo", "other", "typo"):
        terms.check(FlowHeaders(name))
    assert count(instruments, "igw_unknown_objectives_total") == 4
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert "pool chat: a request names the objective 'typo', which does not exist: its priority is 0" in lines[0]
    assert "'other'" in lines[1]


def test_names_that_a_client_invents_cost_a_bounded_number_of_lines_and_one_series(
    clock: ManualClock, log: io.StringIO
) -> None:
    instruments = Instruments(clock)
    terms = RequestTerms("chat", instruments)
    for number in range(10_000):
        terms.check(FlowHeaders(f"invented-{number}"))
    lines = log.getvalue().splitlines()
    assert len(lines) == REMEMBERED_NAMES
    assert "further unknown ones are counted and not named" in lines[-1]
    assert count(instruments, "igw_unknown_objectives_total") == 10_000


def test_a_header_that_is_not_used_is_counted_by_its_reason_and_logged_once_a_minute(
    clock: ManualClock, log: io.StringIO
) -> None:
    instruments = Instruments(clock)
    sent = {"x-llm-d-inference-ttl": "0s", "x-gateway-inference-objective": "x" * 10_000}
    for _ in range(60):
        for name, reason in read_flow_headers(sent, FlowHeaderRules()).ignored:
            instruments(FlowHeaderIgnored("chat", name, reason))
        clock.advance(1.0)
    labels = {"header": "x-llm-d-inference-objective", "reason": "too_long"}
    assert count(instruments, "igw_flow_headers_ignored_total", **labels) == 60
    labels = {"header": "x-llm-d-inference-ttl", "reason": "not_positive"}
    assert count(instruments, "igw_flow_headers_ignored_total", **labels) == 60
    lines = log.getvalue().splitlines()
    assert len(lines) == 2
    assert "pool chat: the value of a request's x-llm-d-inference-ttl is not used: not_positive" in lines[1]
    assert "xxx" not in log.getvalue()
