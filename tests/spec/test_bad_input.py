"""The specification of bad input: every row of the fault table, checked at a running agent.

tests/spec holds this specification. `fault_table.py` (with `environment_rows.py`) is the table: a row is a fault, its
cells are what the picker, `/v1/state`, `/v1/gauges` and `/metrics` then have for the endpoint.
docs/reference/bad-input.md shows the same table to users.

How a row becomes tests: `run_row` starts an agent with a few endpoints (`scenario.py`), injects the row's fault into
one of them, reads all outputs before, during and after it, and repairs it. Each test below is one column of the table
(`expectations.py` has the checks), parametrized by row. Each row runs once for all its tests.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from agent.engines.table import REFUSALS
from agent.events import Event
from agent.scrape.reasons import REASONS
from agent.state.health import HEALTH_REASONS
from tests.processes import ROOT
from tests.spec.expectations import PAGE_VALUES, Observations, grown, series_text, values
from tests.spec.fault_row import AT_THIRD, AT_THIRD_PROBE, FaultRow
from tests.spec.fault_table import TABLE
from tests.spec.scenario import PICKS, ROUND_SECONDS, Outputs, run_scenario

AT_A_TIME = 8


class RowRun(NamedTuple):
    """A row, its outputs, the events of the good servers, and the outputs after the repair."""

    row: FaultRow
    observations: Observations
    side_effects: list[Event]
    repaired: Outputs


async def run_row(row: FaultRow, folder: Path) -> RowRun:
    """Run the scenario of a row."""
    async with run_scenario(folder, row.endpoints, row.setup) as scenario:
        before = await scenario.read_outputs()
        early = await row.inject(scenario)
        after = await scenario.read_outputs()
        observations = Observations(
            scenario.bad.address, [server.address for server in scenario.good], before, early, after
        )
        await row.repair(scenario)
        await scenario.scrape_round()
        await scenario.until("healthy")
        await scenario.models()
        return RowRun(row, observations, scenario.side_effects(), await scenario.read_outputs())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, asyncio.Task[RowRun]]]:
    """The runs of the rows that the selected tests need, AT_A_TIME of them at once."""
    selected = [getattr(item, "callspec").params for item in request.session.items if hasattr(item, "callspec")]  # noqa: B009
    wanted = {params["row"] for params in selected if isinstance(params.get("row"), FaultRow)}
    limit = asyncio.Semaphore(AT_A_TIME)

    async def run(row: FaultRow) -> RowRun:
        async with limit:
            return await run_row(row, tmp_path_factory.mktemp("bad input"))

    tasks = {row.fault: asyncio.create_task(run(row)) for row in TABLE if row in wanted}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def case(row: FaultRow, cases: dict[str, asyncio.Task[RowRun]]) -> RowRun:
    return await cases[row.fault]


def cell(test: Callable[[RowRun], Awaitable[None]]) -> Any:
    """A test for every row, on the event loop of the rows' scenarios."""
    ids = [row.fault.replace(" ", "-") for row in TABLE]
    return pytest.mark.parametrize("row", TABLE, ids=ids, scope="module")(
        pytest.mark.asyncio(loop_scope="module")(test)
    )


@cell
async def test_the_picker(case: RowRun) -> None:
    case.row.picker.check(case.observations)


@cell
async def test_the_state_document(case: RowRun) -> None:
    case.row.state.check(case.observations)


@cell
async def test_the_gauges_document(case: RowRun) -> None:
    case.row.gauges.check(case.observations)


@cell
async def test_the_metrics_page(case: RowRun) -> None:
    case.row.metrics.check(case.observations)


@cell
async def test_exactly_the_counters_of_the_row_increase(case: RowRun) -> None:
    found = grown(case.observations.before, case.observations.after)
    assert {series_text(series) for series in found} == {series_text(series) for series in case.row.counters}


@cell
async def test_the_good_endpoints_are_not_affected(case: RowRun) -> None:
    assert not case.side_effects
    for address in case.observations.good:
        for outputs in (case.observations.early, case.observations.after, case.repaired):
            values(outputs, address, PAGE_VALUES)
            assert outputs.state[address]["page_age_seconds"] < ROUND_SECONDS
            assert outputs.picks.get(address, 0) >= PICKS / len(outputs.state) / 2


@cell
async def test_before_a_fault_takes_effect_the_last_page_is_valid_with_its_true_age(case: RowRun) -> None:
    early, before = (
        case.observations.early.state[case.observations.bad],
        case.observations.before.state[case.observations.bad],
    )
    if case.row.takes_effect not in (AT_THIRD, AT_THIRD_PROBE):
        assert early["failures"] <= 1
        return
    assert early["health"] == "healthy"
    assert early["failures"] == (2 if case.row.takes_effect == AT_THIRD else 1)
    passed = case.observations.early.header["uptime_seconds"] - case.observations.before.header["uptime_seconds"]
    assert early["page_age_seconds"] == pytest.approx(before["page_age_seconds"] + passed)
    assert {signal: early["signals"][signal]["value"] for signal in PAGE_VALUES} == PAGE_VALUES
    assert case.observations.early.picks.get(case.observations.bad)


@cell
async def test_after_the_repair_it_is_healthy_again(case: RowRun) -> None:
    values(case.repaired, case.observations.bad, PAGE_VALUES)
    assert case.repaired.picks.get(case.observations.bad)


# -- the table itself ------------------------------------------------------------------------------------------------


def cells(row: FaultRow) -> str:
    counts = ", ".join(map(series_text, row.counters)) or "nothing"
    texts = (row.picker.text, row.state.text, row.gauges.text, row.metrics.text, counts)
    return f"| **{row.fault}**: {row.description} | {row.takes_effect} | {' | '.join(texts)} |"


def test_the_document_shows_the_table() -> None:
    text = (ROOT / "docs" / "reference" / "bad-input.md").read_text(encoding="utf-8")
    text = text.partition("\n## The API server and its objects")[0]  # what follows is no fault of a model server
    rows = [cells(row) for row in TABLE]
    assert re.findall(r"^\| \*\*.*\|$", text, re.MULTILINE) == rows, "it should be:\n" + "\n".join(rows)


def test_every_reason_that_a_server_can_cause_has_a_row() -> None:
    counted = {dict(labels).get("reason") for row in TABLE for _, labels in row.counters}
    # Tests of the other reasons: tests/scrape (the agent's certificates, several ports), tests/accelerators (an empty
    # page) and tests/engines (labels, histograms).
    assert REASONS.keys() - counted == {"tls_files", "tls_client", "empty", "page_refused"}
    assert HEALTH_REASONS.keys() - counted == {"health_refused"}
    assert REFUSALS.keys() - counted == {"not_a_number", "unknown_unit", "not_a_histogram"}
