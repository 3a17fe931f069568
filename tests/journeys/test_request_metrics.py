"""Request metrics of an agent behind a real Envoy: what a client did and saw is what the page shows."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.requests.control_headers import FAIRNESS_ID, OBJECTIVE
from agent.requests.control_headers import TTFT as TTFT_HEADER
from tests.app.live import running
from tests.journeys.bad_input.fleet import CHAT, IGW, MODES, Counts, chat
from tests.processes import Processes
from tests.waiting import found

LABELS = {"model_name": "emulated", "target_model_name": "emulated"}
TTFT = "llm_d_epp_request_ttft_seconds"


class MeasuredGateway:
    """Envoy's address, the agent's metrics, and a client."""

    def __init__(self, url: str, admin: str, client: aiohttp.ClientSession) -> None:
        self._url = url
        self._admin = admin
        self._client = client

    async def send(self, headers: dict[str, str] | None = None, **more: Any) -> tuple[int, bytes]:
        async with self._client.post(self._url, json=chat("hello " * 40) | more, headers=headers) as response:
            return response.status, await response.read()

    async def leave_after_the_first_chunk(self, **more: Any) -> None:
        async with self._client.post(self._url, json=chat("hello " * 40) | more) as response:
            await response.content.readany()

    async def counts(self) -> Counts:
        async with self._client.get(f"http://{self._admin}/metrics") as response:
            return Counts(await response.text())

    async def completed(self, number: int) -> Counts:
        """The metrics once so many requests are reported."""
        return await found(self.counts, lambda seen: seen.of("igw_request_results_total") == number)


# As the gateways of GKE send everything, response bodies included, and no access log.
EVERYTHING: dict[str, str] = {
    "request_header_mode": "SEND",
    "request_body_mode": "FULL_DUPLEX_STREAMED",
    "request_trailer_mode": "SEND",
    "response_header_mode": "SEND",
    "response_body_mode": "FULL_DUPLEX_STREAMED",
    "response_trailer_mode": "SEND",
}


def send_everything(document: Any) -> None:
    """Change a bootstrap so that Envoy sends all phases to the picker and no access log."""
    for listener in document["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        manager.pop("access_log", None)
        manager["http_filters"] = [each for each in manager["http_filters"] if not each["name"].endswith("lua")]
        manager["http_filters"][0]["typed_config"]["processing_mode"] = EVERYTHING


@asynccontextmanager
async def measured_gateway(
    directory: Path, processes: Processes, mode: PickMode, *, log: bool = True
) -> AsyncIterator[MeasuredGateway]:
    emulator = processes.start([*IGW, "emulate", "--listen", "127.0.0.1:0"])
    server = (await asyncio.to_thread(emulator.wait_for, r"on http://(\S+): "))[1]
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "admin": {"address": "127.0.0.1:0"},
        "scrape": {"interval": "50ms"},
        "flowControl": {"trustHeaders": "all", "callers": ["team-a"]},
        "objectives": [{"name": "interactive", "priority": 10, "ttft": "60s", "timePerOutputToken": "60s"}],
        "pools": [{"extProcAddress": "127.0.0.1:0", "endpoints": [server]}],
    }
    file = directory / "igw.yaml"
    file.write_text(json.dumps(document))
    async with running(file, 1) as live:
        config = EnvoyConfig(
            (EnvoyPool("default", (server,), live.picker),),
            (EnvoyListener("in", "127.0.0.1:0", "default", mode),),
            untrusted_headers=(),
        )
        rendered = bootstrap(config)
        if not log:
            send_everything(rendered)
        envoy = await process.start(rendered, directory / "envoy")
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
                yield MeasuredGateway(f"http://127.0.0.1:{envoy.ports['in']}{CHAT}", live.admin, client)
        finally:
            await envoy.stop()


def usage_of(stream: bytes) -> dict[str, Any]:
    """The usage in the last event of a stream that has one."""
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith(b"data: {")]
    found: dict[str, Any] = next(event["usage"] for event in reversed(events) if event.get("usage"))
    return found


WAYS = [(mode, True) for mode in MODES] + [(PickMode.FULL_DUPLEX, False)]


@pytest.mark.parametrize(("mode", "log"), WAYS, ids=["buffered", "full-duplex", "all-phases"])
async def test_a_stream_is_counted_as_its_client_saw_it_under_all_three_names(
    tmp_path: Path, processes: Processes, mode: PickMode, log: bool
) -> None:
    async with measured_gateway(tmp_path, processes, mode, log=log) as gateway:
        headers = {OBJECTIVE: "interactive", FAIRNESS_ID: "team-a"}
        more = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 12}
        status, stream = await gateway.send(headers, **more)
        usage = usage_of(stream)
        assert (status, usage["completion_tokens"]) == (200, 12)
        counts = await gateway.completed(1)
        labels = {**LABELS, "fairness_id": "team-a", "priority": "10"}
        expected = {
            "llm_d_epp_request_input_tokens": usage["prompt_tokens"],
            "llm_d_epp_request_output_tokens": 12,
            "llm_d_epp_response_size_bytes": len(stream),
            "llm_d_epp_request_size_bytes": len(json.dumps(chat("hello " * 40) | more)),
        }
        for name, number in expected.items():
            assert counts.of(f"{name}_sum", **labels) == number, name
        for name in (TTFT, "llm_d_epp_request_streaming_tpot_seconds", "llm_d_epp_request_ntpot_seconds"):
            assert counts.of(f"{name}_count", **labels) == 1, name
        assert counts.of("llm_d_epp_request_total", **labels) == 1
        for family in ("inference_objective", "inference_model"):
            assert counts.of(f"{family}_output_tokens_sum", **LABELS) == 12
            assert counts.of(f"{family}_request_total", **LABELS) == 1
            assert counts.of(f"{family}_request_duration_seconds_count", **LABELS) == 1
        for objective in ("ttft", "tpot"):
            by_result = counts.by("result", "igw_slo_requests_total", objective=objective, **labels)
            assert by_result == {"met": 1}
        assert counts.of("igw_goodput_output_tokens_total", **labels) == 12
        first, per_token, duration = (
            counts.of(f"{name}_sum", **labels)
            for name in (TTFT, "llm_d_epp_request_streaming_tpot_seconds", "llm_d_epp_request_ntpot_seconds")
        )
        # The first token, eleven more, and the duration over all twelve.
        assert first + 11 * per_token <= 12 * duration
        assert counts.of("igw_access_log_unknown_entries_total") == 0


async def test_a_whole_response_an_error_and_a_stream_without_usage_are_told_apart(
    tmp_path: Path, processes: Processes
) -> None:
    async with measured_gateway(tmp_path, processes, PickMode.BUFFERED) as gateway:
        assert (await gateway.send())[0] == 200
        assert (await gateway.send(stream=True))[0] == 200
        assert (await gateway.send(max_tokens=-1))[0] == 400
        assert (await gateway.send({TTFT_HEADER: "0.001"}, stream=True))[0] == 200  # a microsecond
        counts = await gateway.completed(4)
        labels = {**LABELS, "fairness_id": "default-flow", "priority": "0"}
        assert counts.of("igw_request_results_total", code="200", result="ok", **labels) == 3
        assert counts.by("result", "igw_slo_requests_total") == {"missed": 1}
        assert counts.of("igw_request_results_total", code="400", result="client_error", **labels) == 1
        assert counts.of("igw_responses_without_usage_total", **labels) == 2
        assert counts.of("llm_d_epp_request_output_tokens_count", **labels) == 1
        assert counts.of(f"{TTFT}_count", streaming="false", **labels) == 1
        assert counts.of(f"{TTFT}_count", streaming="true", **labels) == 2
        assert counts.of("llm_d_epp_request_streaming_tpot_seconds_count", **labels) == 0


async def test_with_all_phases_a_whole_response_and_one_that_is_cut_are_told_apart(
    tmp_path: Path, processes: Processes
) -> None:
    async with measured_gateway(tmp_path, processes, PickMode.FULL_DUPLEX, log=False) as gateway:
        assert (await gateway.send())[0] == 200
        await gateway.leave_after_the_first_chunk(stream=True, max_tokens=1000)
        counts = await gateway.completed(2)
        labels = {**LABELS, "fairness_id": "default-flow", "priority": "0"}
        assert counts.by("result", "igw_request_results_total", **labels) == {"ok": 1, "cut": 1}
        assert counts.of("llm_d_epp_request_output_tokens_sum", **labels) == 1
        assert counts.of(f"{TTFT}_count", streaming="false", **labels) == 1
        assert counts.of("llm_d_epp_response_size_bytes_count", **labels) == 1
