"""`/v1/flow`: who waits, for what, with the reasons; valid by the schema whatever it contains."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.flow.report import BandReport, EndpointReport, FlowDepth, FlowReport
from agent.flow.room import DETECTORS, LIMITED_BY, Room, RoomLimits
from agent.flow.room_inputs import SLOT_SOURCES, RoomInputs
from agent.instruments.hook import Instruments
from agent.serve.admin.server import AdminServer
from agent.serve.state import documents, flow_documents
from agent.serve.state.flow_documents import CALLERS_SHOWN
from agent.serve.state.moment import Moment
from tests.fakes.clock import ManualClock
from tests.fakes.flows import band, caller, flow_report
from tests.fakes.schema import check
from tests.fakes.state_source import FakeStateSource
from tests.fakes.views import snapshot

amounts = st.floats(0, 1e12)
limits = st.floats(0, 1e12) | st.just(float("inf"))
counts = st.integers(0, 10**9)
rooms = st.builds(Room, st.floats(-1e6, 1e6), st.floats(), limits, limits, limits, amounts, st.sampled_from(LIMITED_BY))
inputs = st.builds(
    RoomInputs,
    st.booleans(),
    st.none() | amounts,
    st.sampled_from(SLOT_SOURCES),
    counts,
    counts,
    amounts,
    st.none() | amounts,
    st.none() | amounts,
    counts,
    counts,
    counts,
    st.floats(0, 1),
    amounts,
    st.none() | amounts,
    st.none() | amounts,
    st.none() | amounts,
)
flows = st.builds(FlowDepth, st.text(max_size=5), counts, counts, counts, st.integers(-(2**40), 2**40), amounts)
bands = st.builds(
    BandReport,
    st.integers(-(2**40), 2**40),
    counts,
    counts,
    counts,
    amounts,
    st.none() | limits,
    st.floats(0, 1),
    st.lists(flows, max_size=4).map(tuple),
    limits,
    limits,
    limits,
)
priorities = st.dictionaries(st.text(max_size=5), st.integers(-(2**31), 2**31 - 1), max_size=3)
reports = st.builds(
    FlowReport,
    counts,
    counts,
    st.none() | amounts,
    st.lists(bands, max_size=3).map(tuple),
    st.lists(
        st.builds(EndpointReport, st.text(max_size=5), rooms, st.booleans(), counts, st.floats(-1e6, 1e6), inputs),
        max_size=3,
    ).map(tuple),
    st.floats(0, 1e6),
    st.just("pool"),
    st.booleans(),
    st.sampled_from(list(DETECTORS)),
    limits,
    limits,
    st.just(()),
    st.none() | st.just(RoomLimits()),
    st.floats(0, 1),
    limits,
    priorities,
    priorities,
)


@given(reports)
def test_any_report_is_valid_by_the_schema_in_flow_and_in_state(report: FlowReport) -> None:
    moment = Moment(0.0, 1.79e9, 0.0)
    check(flow_documents.flow([report], moment), "Flow")
    state = documents.state("epoch", 1, [snapshot()], moment, {"pool": flow_documents.pool_flow(report)})
    check(state, "State")


@given(reports, reports)
def test_a_change_of_flow_control_gives_the_later_one(before: FlowReport, after: FlowReport) -> None:
    old, new = flow_documents.pool_flow(before), flow_documents.pool_flow(after)
    changed = flow_documents.changed_flow(old, new)
    assert changed is not None
    rooms = {**old.rooms, **changed.rooms}
    assert {address: room for address, room in rooms.items() if room is not None} == new.rooms
    assert all(old.rooms.get(address) != room for address, room in changed.rooms.items())


class FlowServed:
    """An admin server of two pools, and a client of it."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http
        self.reports: list[FlowReport] = []
        self.inputs: list[bool] = []

    def flow_reports(self, now: float, pool: str | None = None, *, inputs: bool = False) -> Sequence[FlowReport]:
        self.inputs.append(inputs)
        return [each for each in self.reports if pool in (None, each.pool)]

    async def get(self, path: str, status: int = 200) -> Any:
        async with self.http.get(path) as response:
            content = await response.json()
            assert response.status == status, content
            return content


@pytest.fixture
async def served() -> AsyncIterator[FlowServed]:
    clock = ManualClock(100.0)
    server = AdminServer("127.0.0.1:0", clock=clock, instruments=Instruments(clock))
    server.set_pools([FakeStateSource("llama"), FakeStateSource("qwen")])
    port = await server.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        made = FlowServed(http)
        server.state.set_flows(made.flow_reports)
        yield made
    await server.stop()


async def test_the_document_has_the_bands_the_callers_the_rooms_and_what_would_be_shed(served: FlowServed) -> None:
    served.reports = [
        flow_report(
            band(10, caller("chat", 2, 4.5), caller("batch", 5, 1.0), expected=0.5),
            band(-1, expected=40.0, shed=1 / 3),
            rooms=[Room(3.0, -1.0, 0.25, 4096.0, 65_536.0, 0.75, "slots"), Room(0.0, saturation=1.25)],
            pool="llama",
        )
    ]
    content = await served.get("/v1/flow")
    check(content, "Flow")
    (pool,) = content["pools"]
    assert (pool["pool"], pool["requests"], pool["saturated"], pool["oldest_seconds"]) == ("llama", 7, True, 4.5)
    assert [each["name"] for each in pool["bands"][0]["callers"]] == ["batch", "chat"]
    assert pool["shedding"] == [{"priority": -1, "expected_wait_seconds": 40.0, "probability": 1 / 3}]
    first, second = (each["room"] for each in pool["endpoints"])
    assert (first["requests"], first["kv_tokens"], first["saturation"], first["limited_by"]) == (3, 4096, 0.75, "slots")
    assert (second["has_room"], second["kv_tokens"]) == (False, None)
    assert served.inputs == [True]


async def test_one_pool_can_be_selected_and_an_unknown_one_is_refused(served: FlowServed) -> None:
    served.reports = [flow_report(pool="llama"), flow_report(pool="qwen")]
    assert [each["pool"] for each in (await served.get("/v1/flow?pool=qwen"))["pools"]] == ["qwen"]
    refused = await served.get("/v1/flow?pool=lama", 404)
    assert refused["error"]["message"] == "there is no pool 'lama'; the pools are: llama, qwen"


async def test_gauges_and_state_do_not_compute_the_inputs_of_rooms(served: FlowServed) -> None:
    served.reports = [flow_report(pool="llama")]
    state = await served.get("/v1/state")
    assert [pool["flow"] is None for pool in state["pools"]] == [False, True]
    found = await served.get("/v1/gauges?name=igw_flow_held_requests")
    assert [row["value"] for row in found["gauges"]] == [0]
    assert served.inputs == [False, False]


def test_a_pool_that_holds_no_requests_shows_no_room() -> None:
    report = flow_report(band(0), rooms=[Room(float("inf"))], enabled=False)
    (pool,) = flow_documents.flow([report], Moment(0.0, 1.79e9, 0.0)).pools
    assert [each.room for each in pool.endpoints] == [None]
    assert pool.saturated is False
    assert flow_documents.pool_flow(report).rooms == {}


def test_the_document_shows_a_bounded_number_of_callers_and_counts_the_others() -> None:
    many = [caller(f"caller-{number}", 1 + number) for number in range(1000)]
    document = flow_documents.flow([flow_report(band(0, *many))], Moment(0.0, 1.79e9, 0.0))
    shown = document.pools[0].bands[0]
    assert len(shown.callers) == CALLERS_SHOWN
    assert shown.more_callers == 1000 - CALLERS_SHOWN
    assert shown.callers[0].name == "caller-999"
