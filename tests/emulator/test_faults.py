"""Each fault has its documented effect on a client, and can be reset."""

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

from agent.emulator.faults import Faults, InvalidFault
from tests.emulator.running_emulator import RunningEmulator, run_emulator, sse
from tests.waiting import eventually, found

REQUEST = {"model": "tiny", "prompt": "x", "max_tokens": 20}


@pytest_asyncio.fixture
async def emulator() -> AsyncIterator[RunningEmulator]:
    async with run_emulator() as emulator:
        yield emulator


async def test_faults_are_shown_set_kept_and_cleared(emulator):
    assert json.loads((await emulator.get("/emulator/faults"))[1]) == Faults().show()
    await emulator.fault(metrics="empty", completions_ratio=0.5)
    await emulator.fault(health="error")
    shown = json.loads((await emulator.get("/emulator/faults"))[1])
    assert (shown["metrics"], shown["completions_ratio"], shown["health"]) == ("empty", 0.5, "error")
    async with emulator.session.delete(emulator.url + "/emulator/faults") as response:
        assert await response.json() == Faults().show()


async def test_faults_are_set_by_plain_curl_which_sends_another_content_type(emulator):
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with emulator.session.post(
        emulator.url + "/emulator/faults", data=b'{"metrics": "hang"}', headers=form
    ) as response:
        assert (response.status, (await response.json())["metrics"]) == (200, "hang")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "empty"}, "'metric' is not a fault; the faults are metrics, "),
        ({"metrics": "broken"}, "metrics must be one of ok, hang, slow"),
        ({"completions_ratio": 2}, "between 0 and 1"),
        ({"completions_status": 200}, "an error status, 400 to 599"),
        ({"metrics_delay_seconds": -1}, "a number of at least 0"),
        ({"cut_after_tokens": 1.5}, "a whole number"),
        ({"die": 1}, "die must be true or false"),
    ],
)
async def test_an_unknown_fault_is_refused_with_a_list_of_the_valid_ones(emulator, fields, message):
    status, answer = await emulator.post("/emulator/faults", fields)
    assert status == 400
    assert message in answer["error"]["message"]
    assert emulator.server.faults == Faults()


@given(st.dictionaries(st.sampled_from([*Faults().show(), "x"]), st.one_of(st.none(), st.booleans(), st.integers(),
                                                                         st.floats(), st.text())))  # fmt: skip
def test_any_fields_are_valid_faults_or_are_refused(fields):
    try:
        faults = Faults().changed(fields)
    except InvalidFault:
        return
    assert faults.show() == Faults().show() | fields


@pytest.mark.parametrize("path", ["/metrics", "/health", "/v1/completions"])
async def test_a_hanging_path_never_answers_and_the_others_do(emulator, path):
    await emulator.fault(**{path.rpartition("/")[2]: "hang"})
    hanging = asyncio.create_task(emulator.get(path) if path != "/v1/completions" else emulator.post(path, REQUEST))
    others = [(await emulator.get("/version"))[0] for _ in range(5)]
    assert others == [200] * 5
    assert not hanging.done()
    hanging.cancel()


async def test_a_slow_page_is_late_and_complete(emulator):
    await emulator.fault(metrics="slow", metrics_delay_seconds=0.2)
    slow = asyncio.create_task(emulator.get("/metrics"))
    assert (await emulator.get("/health"))[0] == 200
    assert not slow.done()
    assert b"vllm:num_requests_running" in (await slow)[1]


@pytest.mark.parametrize(
    ("kind", "status", "begins"),
    [("error", 500, b"Internal"), ("html", 200, b"<!DOCTYPE html>"), ("garbage", 200, b"\x00\x01\x02")],
)
async def test_a_bad_page_has_the_kind_that_was_set(emulator, kind, status, begins):
    await emulator.fault(metrics=kind)
    got, body = await emulator.get("/metrics")
    assert got == status
    assert body.startswith(begins)


async def test_an_empty_page_is_empty(emulator):
    await emulator.fault(metrics="empty")
    assert await emulator.get("/metrics") == (200, b"")


async def test_a_nan_page_has_nan_gauges_and_is_otherwise_valid(emulator):
    await emulator.fault(metrics="nan")
    lines = (await emulator.get("/metrics"))[1].decode().splitlines()
    assert 'vllm:num_requests_waiting{engine="0",model_name="tiny"} NaN' in lines
    assert 'vllm:num_preemptions_total{engine="0",model_name="tiny"} 0.0' in lines


async def test_a_renamed_page_has_every_sample_under_another_name(emulator):
    true = (await emulator.get("/metrics"))[1]
    await emulator.fault(metrics="renamed")
    page = (await emulator.get("/metrics"))[1]
    assert b"vllm:" not in page
    assert page.count(b"renamed_engine_num_requests_waiting{") == true.count(b"vllm:num_requests_waiting{") == 1


async def test_a_page_without_stats_has_the_process_and_http_families_only(emulator):
    await emulator.fault(metrics="no_stats")
    names = {line.split("{")[0].split(" ")[0] for line in (await emulator.get("/metrics"))[1].decode().splitlines()}
    names.discard("#")
    assert {name.partition("_")[0] for name in names} == {"python", "process", "http"}


async def test_a_page_of_comments_has_help_and_type_lines_only(emulator):
    await emulator.fault(metrics="comments")
    page = (await emulator.get("/metrics"))[1].decode().splitlines()
    assert any("vllm:num_requests_waiting" in line for line in page)
    assert all(line.startswith(("# HELP ", "# TYPE ")) for line in page)


async def test_a_cut_page_ends_before_its_declared_length(emulator):
    await emulator.fault(metrics="cut")
    with pytest.raises(aiohttp.ClientPayloadError):
        await emulator.get("/metrics")


async def test_a_huge_page_is_100_mib_and_the_client_may_disconnect_early(emulator):
    await emulator.fault(metrics="huge")
    async with emulator.session.get(emulator.url + "/metrics") as response:
        assert response.content_length == 100 << 20
        await response.content.readexactly(1 << 20)
        response.close()
    async with emulator.session.delete(emulator.url + "/emulator/faults"):
        pass
    assert (await emulator.get("/health"))[0] == 200


async def test_an_error_answer_has_the_status_that_was_set(emulator):
    await emulator.fault(completions="error", completions_status=429)
    status, answer = await emulator.post("/v1/completions", REQUEST)
    assert status == answer["error"]["code"] == 429


async def test_a_fault_can_affect_a_part_of_the_requests(emulator):
    await emulator.fault(completions="error", completions_ratio=0.5)
    statuses = [(await emulator.post("/v1/completions", REQUEST))[0] for _ in range(40)]
    assert 5 < statuses.count(500) < 35
    assert set(statuses) == {200, 500}


async def test_a_cut_stream_ends_without_its_last_chunk(emulator):
    await emulator.fault(completions="cut", cut_after_tokens=4)
    async with emulator.session.post(emulator.url + "/v1/completions", json=REQUEST | {"stream": True}) as response:
        assert response.status == 200
        first = await response.content.readline()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert first.startswith(b"data: {")
    await eventually(lambda: emulator.server.queue_lengths == (0, 0))


async def test_a_stream_cut_with_an_error_ends_cleanly_with_the_error_and_done(emulator):
    await emulator.fault(completions="cut_with_error", cut_after_tokens=4)
    async with emulator.session.post(emulator.url + "/v1/completions", json=REQUEST | {"stream": True}) as response:
        events = sse((await response.read()).decode())
    assert json.loads(events[-2])["error"]["type"] == "InternalServerError"
    assert events[-1] == "[DONE]"
    await eventually(lambda: emulator.server.queue_lengths == (0, 0))


async def test_a_reset_connection_has_no_answer(emulator):
    await emulator.fault(completions="reset")
    with pytest.raises(aiohttp.ClientConnectionError):
        await emulator.post("/v1/completions", REQUEST)


async def test_health_can_be_an_error(emulator):
    await emulator.fault(health="error")
    assert (await emulator.get("/health"))[0] == 503


async def test_the_port_is_closed_for_the_given_time_and_opens_again(emulator):
    async def answers(path: str = "/health") -> bool:
        try:
            return (await emulator.get(path))[0] == 200
        except aiohttp.ClientConnectionError:
            return False

    with contextlib.suppress(aiohttp.ClientConnectionError):  # the connection of this request is closed too
        await emulator.fault(refuse_seconds=0.3)
    assert not await answers()
    assert await found(answers)


async def test_the_fault_die_calls_die(emulator):
    await emulator.fault(die=True)
    assert len(emulator.deaths) == 1


async def test_foreign_requests_are_on_the_page_and_hold_the_slots(emulator):
    await emulator.fault(foreign_requests=7, foreign_answer_tokens=1500)  # 4 slots; about two seconds each
    await eventually(lambda: emulator.server.queue_lengths == (4, 3), what="a full batch and a queue")
    page = (await emulator.get("/metrics"))[1]
    assert b'vllm:num_requests_running{engine="0",model_name="tiny"} 4.0\n' in page
    assert b'vllm:num_requests_waiting{engine="0",model_name="tiny"} 3.0\n' in page
    request = asyncio.create_task(emulator.post("/v1/completions", REQUEST))
    await eventually(lambda: emulator.server.queue_lengths == (4, 4), what="a request behind them")
    await emulator.fault(foreign_requests=0)
    assert (await request)[0] == 200
    assert emulator.server.queue_lengths == (0, 0)


async def test_a_foreign_request_that_ends_is_followed_by_the_next_one(emulator):
    await emulator.fault(foreign_requests=2, foreign_answer_tokens=1)
    engine = emulator.server._driver.engine
    await eventually(lambda: engine.counters.success["length"] > 10, what="many foreign requests")
    await eventually(lambda: sum(emulator.server.queue_lengths) == 2, what="two at a time")


async def test_resetting_the_faults_ends_the_foreign_requests(emulator):
    await emulator.fault(foreign_requests=7, foreign_answer_tokens=1500)
    await eventually(lambda: sum(emulator.server.queue_lengths) == 7, what="foreign requests")
    async with emulator.session.delete(emulator.url + "/emulator/faults") as response:
        assert (await response.json())["foreign_requests"] == 0
    await eventually(lambda: emulator.server.queue_lengths == (0, 0), what="no foreign requests")


async def test_foreign_answers_that_the_server_could_never_hold_are_refused(emulator):
    status, answer = await emulator.post("/emulator/faults", {"foreign_requests": 1, "foreign_answer_tokens": 10**6})
    assert status == 400
    assert "the server has" in answer["error"]["message"]
    assert emulator.server.faults == Faults()
    status, answer = await emulator.post("/emulator/faults", {"foreign_requests": 10**6})
    assert status == 400
    assert "at most 10000" in answer["error"]["message"]
