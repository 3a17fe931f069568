"""The specification of bad input: `tests/spec/table.py` row by row, each cell seen at a real agent.

Read the table first: a row is a fault, its cells are what the picker, `/v1/state`, `/v1/gauges` and `/metrics` then say
of the endpoint that has it. Here each cell is asked of an agent that runs, over sockets, with a clock that the test
moves (`tests/spec/story.py`). Beside every bad endpoint stands one that is well, and must not be harmed.
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
from tests.spec.row import AT_THIRD, AT_THIRD_QUESTION, Row
from tests.spec.story import PICKS, TURN, Seen, a_story
from tests.spec.table import TABLE
from tests.spec.words import TOLD, Told, grown, spelt, values

AT_A_TIME = 8


class Case(NamedTuple):
    """A row, what was seen of it, what befell the others, and what was seen after the fault was mended."""

    row: Row
    told: Told
    harm: list[Event]
    mended: Seen


async def told_of(row: Row, folder: Path) -> Case:
    """Live through the row."""
    async with a_story(folder, row.endpoints, row.scene) as story:
        before = await story.look()
        early = await row.do(story)
        seen = await story.look()
        told = Told(story.bad.address, [server.address for server in story.good], before, early, seen)
        await row.mend(story)
        await story.turn()
        await story.until("healthy")
        await story.models()
        return Case(row, told, story.harm(), await story.look())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, asyncio.Task[Case]]]:
    """The rows that are asked for, some of them at a time: each has an agent and servers of its own."""
    asked = [getattr(item, "callspec").params for item in request.session.items if hasattr(item, "callspec")]  # noqa: B009
    wanted = {params["row"] for params in asked if isinstance(params.get("row"), Row)}
    room = asyncio.Semaphore(AT_A_TIME)

    async def one(row: Row) -> Case:
        async with room:
            return await told_of(row, tmp_path_factory.mktemp("bad input"))

    tasks = {row.fault: asyncio.create_task(one(row)) for row in TABLE if row in wanted}
    yield tasks
    for task in tasks.values():
        task.cancel()
    await asyncio.gather(*tasks.values(), return_exceptions=True)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def case(row: Row, cases: dict[str, asyncio.Task[Case]]) -> Case:
    return await cases[row.fault]


def cell(test: Callable[[Case], Awaitable[None]]) -> Any:
    """A test that is asked of every row, on the event loop on which the rows are lived through."""
    ids = [row.fault.replace(" ", "-") for row in TABLE]
    return pytest.mark.parametrize("row", TABLE, ids=ids, scope="module")(
        pytest.mark.asyncio(loop_scope="module")(test)
    )


@cell
async def test_what_the_picker_does(case: Case) -> None:
    case.row.picker.check(case.told)


@cell
async def test_what_the_state_says(case: Case) -> None:
    case.row.state.check(case.told)


@cell
async def test_which_gauges_an_autoscaler_gets(case: Case) -> None:
    case.row.gauges.check(case.told)


@cell
async def test_what_stands_in_the_metrics(case: Case) -> None:
    case.row.metrics.check(case.told)


@cell
async def test_what_is_counted_and_that_nothing_else_is(case: Case) -> None:
    found = grown(case.told.before, case.told.seen)
    assert {spelt(series) for series in found} == {spelt(series) for series in case.row.counts}


@cell
async def test_the_endpoints_beside_it_are_not_harmed(case: Case) -> None:
    assert not case.harm
    for address in case.told.good:
        for seen in (case.told.early, case.told.seen, case.mended):
            values(seen, address, TOLD)
            assert seen.state[address]["page_age_seconds"] < TURN
            assert seen.picks.get(address, 0) >= PICKS / len(seen.state) / 2


@cell
async def test_before_a_fault_counts_the_last_page_holds_with_its_true_age(case: Case) -> None:
    early, before = case.told.early.state[case.told.bad], case.told.before.state[case.told.bad]
    if case.row.since not in (AT_THIRD, AT_THIRD_QUESTION):
        assert early["failures"] <= 1
        return
    assert early["health"] == "healthy"
    assert early["failures"] == (2 if case.row.since == AT_THIRD else 1)
    passed = case.told.early.header["uptime_seconds"] - case.told.before.header["uptime_seconds"]
    assert early["page_age_seconds"] == pytest.approx(before["page_age_seconds"] + passed)
    assert {signal: early["signals"][signal]["value"] for signal in TOLD} == TOLD
    assert case.told.early.picks.get(case.told.bad)


@cell
async def test_once_mended_it_is_whole_again(case: Case) -> None:
    values(case.mended, case.told.bad, TOLD)
    assert case.mended.picks.get(case.told.bad)


# -- the table itself ------------------------------------------------------------------------------------------------


def cells(row: Row) -> str:
    counts = ", ".join(map(spelt, row.counts)) or "nothing"
    words = (row.picker.words, row.state.words, row.gauges.words, row.metrics.words, counts)
    return f"| **{row.fault}**: {row.what} | {row.since} | {' | '.join(words)} |"


def test_the_document_shows_this_table() -> None:
    text = (ROOT / "docs" / "bad-input.md").read_text(encoding="utf-8")
    rows = [cells(row) for row in TABLE]
    assert re.findall(r"^\| \*\*.*\|$", text, re.MULTILINE) == rows, "it should say:\n" + "\n".join(rows)


def test_every_reason_that_a_page_can_bring_about_has_a_row() -> None:
    counted = {dict(labels).get("reason") for row in TABLE for _, labels in row.counts}
    # Our own certificates are told of in `tests/scrape/test_reach.py`, labels and histograms in `tests/engines`.
    assert REASONS.keys() - counted == {"tls_files", "tls_client"}
    assert HEALTH_REASONS.keys() - counted == {"health_refused", "health_only", "asleep"}
    assert REFUSALS.keys() - counted == {"not_a_number", "unknown_unit", "not_a_histogram"}
