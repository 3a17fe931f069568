"""Each fault that a server can be told to have is what a client meets, and goes away again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from agent.emulator.faults import BadFaults, Faults
from tests.emulator.rig import Rig, serving, sse
from tests.waiting import eventually, found

ASK = {"model": "tiny", "prompt": "x", "max_tokens": 20}


@pytest_asyncio.fixture
async def rig() -> AsyncIterator[Rig]:
    async with serving() as rig:
        yield rig


async def test_faults_are_shown_set_kept_and_cleared(rig):
    assert json.loads((await rig.get("/emulator/faults"))[1]) == Faults().show()
    await rig.fault(metrics="empty", completions_ratio=0.5)
    await rig.fault(health="error")
    shown = json.loads((await rig.get("/emulator/faults"))[1])
    assert (shown["metrics"], shown["completions_ratio"], shown["health"]) == ("empty", 0.5, "error")
    async with rig.session.delete(rig.url + "/emulator/faults") as response:
        assert await response.json() == Faults().show()


async def test_faults_are_set_by_plain_curl_which_tells_another_content_type(rig):
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with rig.session.post(rig.url + "/emulator/faults", data=b'{"metrics": "hang"}', headers=form) as response:
        assert (response.status, (await response.json())["metrics"]) == (200, "hang")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"metric": "empty"}, "'metric' is not a fault; there are metrics, "),
        ({"metrics": "broken"}, "metrics can be ok, hang, slow"),
        ({"completions_ratio": 2}, "between 0 and 1"),
        ({"completions_status": 200}, "an error status, 400 to 599"),
        ({"metrics_delay_seconds": -1}, "a number of at least 0"),
        ({"cut_after_tokens": 1.5}, "a whole number"),
        ({"die": 1}, "die is true or false"),
    ],
)
async def test_a_fault_that_does_not_exist_is_refused_and_those_that_do_are_named(rig, fields, says):
    status, answer = await rig.post("/emulator/faults", fields)
    assert status == 400
    assert says in answer["error"]["message"]
    assert rig.server.faults == Faults()


@given(st.dictionaries(st.sampled_from([*Faults().show(), "x"]), st.one_of(st.none(), st.booleans(), st.integers(),
                                                                         st.floats(), st.text())))  # fmt: skip
def test_any_fields_make_faults_or_are_refused(fields):
    try:
        faults = Faults().changed(fields)
    except BadFaults:
        return
    assert faults.show() == Faults().show() | fields


@pytest.mark.parametrize("path", ["/metrics", "/health", "/v1/completions"])
async def test_a_hanging_part_never_answers_and_the_rest_does(rig, path):
    await rig.fault(**{path.rpartition("/")[2]: "hang"})
    hanging = asyncio.create_task(rig.get(path) if path != "/v1/completions" else rig.post(path, ASK))
    others = [(await rig.get("/version"))[0] for _ in range(5)]
    assert others == [200] * 5
    assert not hanging.done()
    hanging.cancel()


async def test_a_slow_page_comes_late_and_whole(rig):
    await rig.fault(metrics="slow", metrics_delay_seconds=0.2)
    slow = asyncio.create_task(rig.get("/metrics"))
    assert (await rig.get("/health"))[0] == 200
    assert not slow.done()
    assert b"vllm:num_requests_running" in (await slow)[1]


@pytest.mark.parametrize(
    ("kind", "status", "begins"),
    [("error", 500, b"Internal"), ("html", 200, b"<!DOCTYPE html>"), ("garbage", 200, b"\x00\x01\x02")],
)
async def test_a_bad_page_is_what_it_was_asked_to_be(rig, kind, status, begins):
    await rig.fault(metrics=kind)
    got, body = await rig.get("/metrics")
    assert got == status
    assert body.startswith(begins)


async def test_an_empty_page_is_empty(rig):
    await rig.fault(metrics="empty")
    assert await rig.get("/metrics") == (200, b"")


async def test_a_page_of_nan_is_a_page_otherwise(rig):
    await rig.fault(metrics="nan")
    lines = (await rig.get("/metrics"))[1].decode().splitlines()
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} NaN' in lines
    assert 'vllm:num_preemptions_total{engine="0",model_name="tiny"} 0.0' in lines


async def test_a_cut_page_ends_before_its_declared_length(rig):
    await rig.fault(metrics="cut")
    with pytest.raises(aiohttp.ClientPayloadError):
        await rig.get("/metrics")


async def test_a_huge_page_is_100_megabytes_and_may_be_left_early(rig):
    await rig.fault(metrics="huge")
    async with rig.session.get(rig.url + "/metrics") as response:
        assert response.content_length == 100 << 20
        await response.content.readexactly(1 << 20)
        response.close()
    async with rig.session.delete(rig.url + "/emulator/faults"):
        pass
    assert (await rig.get("/health"))[0] == 200


async def test_an_error_answer_has_the_status_that_was_asked_for(rig):
    await rig.fault(completions="error", completions_status=429)
    status, answer = await rig.post("/v1/completions", ASK)
    assert status == answer["error"]["code"] == 429


async def test_a_fault_can_meet_only_a_part_of_the_requests(rig):
    await rig.fault(completions="error", completions_ratio=0.5)
    statuses = [(await rig.post("/v1/completions", ASK))[0] for _ in range(40)]
    assert 5 < statuses.count(500) < 35
    assert set(statuses) == {200, 500}


async def test_a_cut_stream_ends_without_its_last_chunk(rig):
    await rig.fault(completions="cut", cut_after_tokens=4)
    async with rig.session.post(rig.url + "/v1/completions", json=ASK | {"stream": True}) as response:
        assert response.status == 200
        first = await response.content.readline()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert first.startswith(b"data: {")
    await eventually(lambda: rig.server.engine_counts == (0, 0))


async def test_a_stream_cut_with_an_error_ends_cleanly_with_the_error_and_done(rig):
    await rig.fault(completions="cut_with_error", cut_after_tokens=4)
    async with rig.session.post(rig.url + "/v1/completions", json=ASK | {"stream": True}) as response:
        events = sse((await response.read()).decode())
    assert json.loads(events[-2])["error"]["type"] == "InternalServerError"
    assert events[-1] == "[DONE]"
    await eventually(lambda: rig.server.engine_counts == (0, 0))


async def test_a_reset_connection_brings_no_answer(rig):
    await rig.fault(completions="reset")
    with pytest.raises(aiohttp.ClientConnectionError):
        await rig.post("/v1/completions", ASK)


async def test_health_can_be_bad(rig):
    await rig.fault(health="error")
    assert (await rig.get("/health"))[0] == 503


async def test_a_port_is_closed_for_a_while_and_opens_again(rig):
    async def answers(path: str = "/health") -> bool:
        try:
            return (await rig.get(path))[0] == 200
        except aiohttp.ClientConnectionError:
            return False

    with contextlib.suppress(aiohttp.ClientConnectionError):  # the connection that asks for it goes too
        await rig.fault(refuse_seconds=0.3)
    assert not await answers()
    assert await found(answers)


async def test_a_server_told_to_die_calls_its_death(rig):
    await rig.fault(die=True)
    assert len(rig.deaths) == 1
