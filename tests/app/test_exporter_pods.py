"""Accelerator exporters that are pods: found by labels, joined with endpoints by node, followed when they move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agent.events.accelerators import DevicesRead
from agent.events.kubernetes import ObjectProblemFound, ObjectProblemSolved
from tests.app.live import Live, running, servers
from tests.app.test_accelerators import PAGE, document, exporter, get
from tests.fakes.api_server import FakeApiServer, pod
from tests.waiting import eventually, found

EXPORTERS = "/api/v1/namespaces/gpu/pods"


def exporter_pod(name: str, version: int, ip: str, node: str = "n1") -> dict[str, Any]:
    made = pod(name, version, ip, app="dcgm-exporter")
    made["metadata"]["namespace"] = "gpu"
    made["spec"]["nodeName"] = node
    return made


def configuration(path: Path, kubeconfig: str, endpoints: list[str], port: str) -> Path:
    entry = (
        "{source: dcgm, selector: {app: dcgm-exporter}, namespace: gpu, "
        f"port: {port}, interval: 50ms, timeout: 5s, staleAfter: 10s}}"
    )
    path.write_text(document(endpoints, entry) + f"kubernetes: {{kubeconfig: '{kubeconfig}'}}\n")
    return path


async def reasons(live: Live, address: str) -> set[str]:
    """The reasons for which accelerator signals of an endpoint are withheld."""
    state = await get(live, "/v1/state")
    (endpoint,) = (each for each in state["pools"][0]["endpoints"] if each["address"] == address)
    return {each.get("reason", "") for of in endpoint["accelerators"] for each in of["signals"].values()}


async def test_the_pod_on_the_node_of_an_endpoint_is_its_exporter_and_a_node_without_one_is_named(
    tmp_path: Path,
) -> None:
    api = FakeApiServer(collections={EXPORTERS: [exporter_pod("exporter-1", 1, "127.0.0.1")]})
    await api.start()
    async with exporter(PAGE) as source, servers(2) as (one, two):
        here = f"{{address: '{one.address}', node: n1, pod: llm/chat-0}}"
        there = f"{{address: '{two.address}', node: n2, pod: llm/chat-1}}"
        port = source.address.rpartition(":")[2]
        path = configuration(tmp_path / "igw.yaml", api.kubeconfig(tmp_path), [here, there], port)
        async with running(path, healthy=2) as live:
            await eventually(lambda: bool(live.recorder.of(DevicesRead)))
            seen = await get(live, "/v1/accelerators")
            assert [each["address"] for each in seen["exporters"]] == [source.address]
            assert await reasons(live, two.address) == {"no_exporter"}
            assert 'reason="no_exporter"' in await get(live, "/metrics")
            (problem,) = live.recorder.of(ObjectProblemFound)
            assert (problem.kind, problem.reason) == ("Pool", "NoExporterPod")
            assert "pods of namespace gpu with the labels app=dcgm-exporter runs on node n2" in problem.message
            watch = await api.watch(EXPORTERS)
            watch.event("ADDED", exporter_pod("exporter-2", 11, "127.0.0.2", "n2"))
            await eventually(lambda: bool(live.recorder.of(ObjectProblemSolved)))
            seen = await get(live, "/v1/accelerators")
            assert [each["address"] for each in seen["exporters"]] == [source.address, f"127.0.0.2:{port}"]
    await api.stop()


async def test_an_exporter_pod_that_is_replaced_is_scraped_at_its_new_address_and_its_readings_stay_meanwhile(
    tmp_path: Path,
) -> None:
    api = FakeApiServer(collections={EXPORTERS: [exporter_pod("exporter-1", 1, "127.0.0.1")]})
    await api.start()
    async with exporter(PAGE) as source, servers(1) as (one,):
        endpoint = f"{{address: '{one.address}', node: n1, pod: llm/chat-0}}"
        port = source.address.rpartition(":")[2]
        path = configuration(tmp_path / "igw.yaml", api.kubeconfig(tmp_path), [endpoint], port)
        async with running(path, healthy=1) as live:

            async def addresses() -> list[str]:
                return [each["address"] for each in (await get(live, "/v1/accelerators"))["exporters"]]

            await eventually(lambda: bool(live.recorder.of(DevicesRead)))
            watch = await api.watch(EXPORTERS)
            watch.event("DELETED", exporter_pod("exporter-1", 11, "127.0.0.1"))
            await eventually(lambda: bool(live.recorder.of(ObjectProblemFound)))
            pages = len(source.paths)
            assert await addresses() == [source.address]
            assert "no_exporter" not in await reasons(live, one.address)
            watch.event("ADDED", exporter_pod("exporter-9", 12, "127.0.0.3"))
            await found(addresses, lambda seen: seen == [f"127.0.0.3:{port}"])
            assert "no_exporter" not in await reasons(live, one.address)
            assert len(source.paths) <= pages + 1  # at most the scrape that was under way
    await api.stop()
