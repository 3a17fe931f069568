"""The metrics APIs of a running agent, without a cluster: pods that the configuration names, read on loopback."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from agent.app.agent import ListenAddresses
from agent.app.component import CannotStart
from agent.app.process import greeting
from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.events.metrics_api import MetricsRead
from tests.app.live import Live, servers
from tests.fakes.metric_values import AVERAGE_QUEUE, HELD, WAITING
from tests.fakes.model_server import ModelServer, vllm_page
from tests.waiting import found

CUSTOM = "/apis/custom.metrics.k8s.io/v1beta2"
PODS = f"{CUSTOM}/namespaces/llm/pods/*/{WAITING}"
EXTERNAL = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/llm/{HELD}"


class Read(NamedTuple):
    """An answer: its status, and its document."""

    status: int
    document: Any

    @property
    def values(self) -> dict[str, str]:
        """The values by pod; none of a refusal."""
        return {item["describedObject"]["name"]: item["value"] for item in self.document.get("items", ())}


def document(targets: list[ModelServer], metrics: str = "", more: str = "") -> str:
    endpoints = "".join(
        f"\n  - {{address: '{server.address}', pod: llm/chat-{number}, labels: {{app: chat}}}}"
        for number, server in enumerate(targets)
    )
    return (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nadmin: {address: '127.0.0.1:0'}\n"
        f"reload: {{interval: 100ms}}\nscrape: {{interval: 50ms}}\n{more}"
        f"metricsApi: {{address: '127.0.0.1:0', auth: none{metrics}}}\n"
        f"pools:\n- name: chat\n  extProcAddress: 127.0.0.1:0\n  endpoints:{endpoints}\n"
    )


def write(file: Path, text: str) -> None:
    file.write_text(text, encoding="utf-8")


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Live]:
    live = Live(path)
    live.admin = (await live.agent.start()).admin
    try:
        yield live
    finally:
        await live.agent.stop(grace=0)


async def read(live: Live, path: str) -> Read:
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.check_hostname = False
    unverified.verify_mode = ssl.CERT_NONE
    url = f"https://{live.agent.metrics_api.address}{path}"
    async with aiohttp.ClientSession() as http, http.get(url, ssl=unverified) as answer:
        return Read(answer.status, json.loads(await answer.read()))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "igw.yaml"


async def test_a_running_agent_serves_the_values_of_its_pods_and_withholds_them_when_servers_fall_silent(
    file: Path,
) -> None:
    async with servers(2) as targets:
        write(file, document(targets))
        async with running(file) as live:
            answer = await found(lambda: read(live, PODS), lambda each: len(each.values) == 2, what="two values")
            assert answer.values == {"chat-0": "0", "chat-1": "0"}
            (held,) = (await read(live, EXTERNAL)).document["items"]
            assert (held["metricLabels"]["pool"], held["value"]) == ("chat", "0")
            ages = [event.age_seconds for event in live.recorder.of(MetricsRead) if event.api == "custom"]
            assert all(age is not None and 0 <= age <= 3 for age in ages if age is not None)
            await targets[0].stop()
            down = await found(lambda: read(live, PODS), lambda each: each.status != 200, what="the coverage floor")
            assert (down.status, down.document["reason"]) == (503, "ServiceUnavailable")
            assert "1 of 2 pods have" in down.document["message"]


async def test_a_reload_changes_the_coverage_floor(file: Path) -> None:
    async with servers(2) as targets:
        write(file, document(targets))
        async with running(file) as live:
            await found(lambda: read(live, PODS), lambda each: len(each.values) == 2, what="two values")
            await targets[0].stop()
            await found(lambda: read(live, PODS), lambda each: each.status == 503, what="the coverage floor")
            write(file, document(targets, ", minCoverage: 0.5"))
            assert await live.agent.reload()
            assert (await read(live, PODS)).values == {"chat-1": "0"}


async def counted(live: Live) -> dict[str, int]:
    """The requests so far by result, as /metrics has them."""
    async with aiohttp.ClientSession() as http, http.get(f"http://{live.admin}/metrics") as answer:
        page = await answer.text()
    rows = re.findall(r'^igw_metrics_api_requests_total\{result="(\w+)"\} (\d+)', page, re.MULTILINE)
    return {result: int(count) for result, count in rows}


BAD = (
    (PODS.replace(WAITING, "igw_endpoint_waiting"), 404, "unknown_metric", f"did you mean {WAITING}?"),
    (EXTERNAL.replace(HELD, "igw_held"), 404, "unknown_metric", "could not find the external metric igw_held"),
    (PODS.replace("/llm/", "/lm/"), 404, "unknown_namespace", "there are pools in: llm"),
    (EXTERNAL.replace("/llm/", "/lm/"), 404, "unknown_namespace", "there are pools in: llm"),
    (f"{PODS}?labelSelector=app%3Dother", 404, "no_match", "matches app=other; correct the labelSelector"),
    (f"{EXTERNAL}?labelSelector=pool%3Dother", 404, "no_match", "matches pool=other; correct the labelSelector"),
    (f"{PODS}?labelSelector={'a' * 10_001}", 400, "bad_selector", "has over 10000 bytes; select by fewer labels"),
    (f"{EXTERNAL}?labelSelector={'a' * 10_001}", 400, "bad_selector", "has over 10000 bytes; select by fewer labels"),
    (PODS.replace("*", "database-0"), 404, "unknown_object", "pod llm/database-0 is no endpoint of a pool"),
    (PODS, 409, "ambiguous", "pod llm/chat-0 is an endpoint of the pools chat and code; choose one with"),
)


async def test_each_bad_input_has_a_status_and_a_line_and_is_counted_and_an_autoscaler_is_served_beside_it(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with servers(2) as targets:
        shared = f"{{address: '{targets[0].address}', pod: llm/chat-0, labels: {{app: chat}}}}"
        second = f"- {{name: code, extProcAddress: '127.0.0.1:0', endpoints: [{shared}]}}\n"
        write(file, document(targets) + second)
        async with running(file) as live:
            good = f"{PODS}?metricLabelSelector=pool%3Dchat"
            await found(lambda: read(live, good), lambda each: len(each.values) == 2, what="two values")
            for path, status, result, message in BAD:
                before = await counted(live)
                answer = await read(live, path)
                assert (answer.status, answer.document["kind"]) == (status, "Status")
                assert message in answer.document["message"]
                after = await counted(live)
                assert {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key)} == {
                    result: 1
                }
                assert f"metrics API request refused: {result}" in caplog.text
            before = await counted(live)
            for _ in range(30):  # an autoscaler that reads every 100 ms, for three seconds
                assert len((await read(live, good)).values) == 2
            assert (await counted(live))["ok"] - before["ok"] == 30


async def test_an_api_that_is_switched_off_is_not_served(file: Path) -> None:
    async with servers(1) as targets:
        write(file, document(targets, ", external: false"))
        async with running(file) as live:
            assert [group["name"] for group in (await read(live, "/apis")).document["groups"]] == [
                "custom.metrics.k8s.io"
            ]
            assert (await read(live, EXTERNAL)).status == 404


async def test_discovery_is_answered_while_all_servers_are_dead_and_before_the_first_scrape(file: Path) -> None:
    async with servers(1) as targets:
        targets[0].page = vllm_page()
    write(file, document(targets, more="extProc: {startTimeout: 20s}\n"))
    live = Live(file)
    starting = asyncio.create_task(live.agent.start())
    try:

        async def discovery() -> int:
            return (await read(live, CUSTOM)).status if live.agent.metrics_api.address else 0

        assert await found(discovery, what="discovery") == 200
        assert (await read(live, PODS)).status in {404, 503}
        await starting
        assert (await read(live, PODS)).status == 503
        assert (await read(live, f"{CUSTOM}/namespaces/llm/pods/chat-9/{AVERAGE_QUEUE}")).status == 404
    finally:
        await live.agent.stop(grace=0)


async def test_held_requests_are_withheld_while_the_part_of_a_replica_is_unknown(file: Path) -> None:
    async with servers(1) as targets:
        write(
            file, document(targets, more="replicas: {address: '127.0.0.1:0', peers: ['127.0.0.1:1', '127.0.0.2:1']}\n")
        )
        async with running(file) as live:
            answer = await read(live, EXTERNAL)
            assert answer.status == 503
            assert "127.0.0.1:1 (silent" in answer.document["message"]


async def test_the_mode_kubernetes_without_its_packages_is_refused_with_what_to_install(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agent.app.metrics_api.find_spec", lambda _name: None)
    text = document([]).replace("endpoints:", "endpoints: []")
    write(file, text.replace("auth: none", "auth: kubernetes"))
    live = Live(file)
    with pytest.raises(CannotStart, match=r"pip install 'inference-gateway-agent\[kubernetes\]'"):
        await live.agent.start()
    await live.agent.stop(grace=0)


async def test_a_port_in_use_is_named_with_its_option(file: Path) -> None:
    async with servers(1) as targets:
        taken = targets[0].address
        write(
            file,
            document([], "").replace("endpoints:", "endpoints: []").replace("127.0.0.1:0', auth", f"{taken}', auth"),
        )
        live = Live(file)
        with pytest.raises(CannotStart, match=r"metrics API address .* is in use .*metricsApi\.address"):
            await live.agent.start()


def test_the_start_message_names_the_address_of_the_apis() -> None:
    addresses = ListenAddresses("127.0.0.1:9090", {"chat": "127.0.0.1:9002"}, "127.0.0.1:6443")
    lines = greeting(parse(document([]).replace("endpoints:", "endpoints: []"), "x", VOCABULARY), addresses, "1")
    assert "  metrics APIs: https://127.0.0.1:6443/apis" in lines
