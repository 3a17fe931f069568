"""The pods of a real control plane are the endpoints of a real agent, and of Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from agent.app.agent import Agent
from agent.app.vocabulary import VOCABULARY
from agent.clock import Clock, SystemClock
from agent.config.file import load
from agent.envoy import process
from agent.envoy.endpoints import addresses_of
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.events.discovery import SourceProblemFound, SourceProblemSolved
from agent.kube import informer
from tests.app.live import Recorder
from tests.cluster.access import create_service_account, grant, kubeconfig_of
from tests.cluster.addresses import PodAddresses
from tests.cluster.api import Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods
from tests.envoy.gateway import chat
from tests.fakes.ext_proc import CHAT
from tests.fakes.model_server import ModelServer, chunk, chunked_head, good, vllm_page
from tests.waiting import eventually, found

LABELS = {"app": "chat"}
READ_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}


def inference_pool(namespace: str, name: str, *ports: int, labels: dict[str, str] | None = None) -> Object:
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "selector": {"matchLabels": labels or LABELS},
            "targetPorts": [{"number": port} for port in ports or (8000,)],
            "endpointPickerRef": {"name": "picker", "port": {"number": 9002}},
        },
    }


class Streams:
    """The behaviour of the model servers: a chat is a stream that ends when `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.release.set()

    async def serve(self, address: str, port: int) -> ModelServer:
        server = ModelServer(self._answer, vllm_page())
        await server.start(port, address)
        return server

    async def _answer(self, server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path != CHAT:
            await good(server, path, writer)
            return
        writer.write(chunked_head() + chunk(server.address.encode()))
        await self.release.wait()
        writer.write(chunk(b" done") + chunk())


class RunningAgent:
    """An agent in this process, with the configuration in `path`."""

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        self.path = path
        self.clock = clock = clock or SystemClock()
        self.recorder = Recorder(clock)
        self.agent = Agent(load(path, VOCABULARY), clock, path=path, instruments=self.recorder)
        self.admin = ""
        self.pickers: dict[str, str] = {}

    def endpoints(self, pool: str = "chat") -> dict[str, str]:
        """Address -> health."""
        views = self.agent.pools[pool].store.snapshot(self.clock.now()).endpoints
        return {view.address: view.health.value for view in views}

    async def has(self, *addresses: str, pool: str = "chat") -> None:
        """Wait until these are the healthy endpoints, and there are no others."""
        expected = dict.fromkeys(addresses, "healthy")
        await eventually(lambda: self.endpoints(pool) == expected, what=f"{pool}: {expected}")

    async def get(self, path: str) -> str:
        async with aiohttp.ClientSession() as client, client.get(f"http://{self.admin}{path}") as answer:
            return await answer.text()

    async def discovery(self, pool: str = "chat") -> dict[str, Any]:
        """`discovery` of the pool in /v1/state."""
        state = json.loads(await self.get(f"/v1/state?pool={pool}"))
        found: dict[str, Any] = state["pools"][0]["discovery"]
        return found

    async def problem(self, reason: str, pool: str = "chat") -> str:
        """The message of the problem with this reason, once there is one."""

        def fits(discovery: dict[str, Any]) -> bool:
            return reason in [each["reason"] for each in discovery["problems"]]

        discovery = await found(lambda: self.discovery(pool), fits, what=reason)
        return next(str(each["message"]) for each in discovery["problems"] if each["reason"] == reason)


@contextlib.asynccontextmanager
async def running(
    path: Path, pools: list[dict[str, Any]], kubeconfig: Path, *, clock: Clock | None = None, **more: Any
) -> AsyncIterator[RunningAgent]:
    write(path, pools, kubeconfig, **more)
    live = RunningAgent(path, clock)
    try:
        addresses = await live.agent.start()
        live.admin, live.pickers = addresses.admin, addresses.pickers
        yield live
    finally:
        await live.agent.stop(grace=0)


def write(path: Path, pools: list[dict[str, Any]], kubeconfig: Path, **more: Any) -> None:
    document = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "admin": {"address": "127.0.0.1:0"},
        "reload": {"interval": "100ms"},
        "scrape": {"interval": "50ms", "healthInterval": "1h"},
        "extProc": {"startTimeout": "2s"},
        "kubernetes": {"kubeconfig": str(kubeconfig)},
        "pools": [{"extProcAddress": "127.0.0.1:0", **pool} for pool in pools],
    }
    path.write_text(json.dumps({**document, **more}))  # JSON is YAML


@pytest.fixture
def admin(control_plane: ControlPlane) -> Path:
    """A kubeconfig of the administrator."""
    pair = control_plane.admin
    user = {"client-certificate": str(pair.certificate), "client-key": str(pair.key)}
    return control_plane.kubeconfig("discovery", user)


@pytest.fixture
async def streams(
    control_plane: ControlPlane, namespace: str, pod_addresses: PodAddresses
) -> AsyncIterator[tuple[Streams, Pods]]:
    """Pods whose model servers stream."""
    behaviour = Streams()
    made = Pods(control_plane, namespace, pod_addresses, serve=behaviour.serve)
    yield behaviour, made
    behaviour.release.set()
    await made.close()


async def test_a_terminating_pod_keeps_its_stream_and_leaves_the_picker_envoy_and_every_exit(
    control_plane: ControlPlane,
    namespace: str,
    crds: list[str],
    admin: Path,
    streams: tuple[Streams, Pods],
    tmp_path: Path,
) -> None:
    behaviour, pods = streams
    control_plane.api.create(inference_pool(namespace, "chat"))
    for name in ("a", "b"):
        await pods.create(name, LABELS)
    eds = tmp_path / "eds"
    eds.mkdir()
    pool = {"name": "chat", "inferencePool": "chat", "namespace": namespace}
    async with running(tmp_path / "igw.yaml", [pool], admin, envoy={"edsDirectory": str(eds)}) as live:
        await live.has(pods.address("a"), pods.address("b"))
        config = EnvoyConfig(
            (EnvoyPool("chat", (), live.pickers["chat"]),),
            (EnvoyListener("chat", "127.0.0.1:0", "chat", PickMode.FULL_DUPLEX),),
            eds_directory=str(eds),
        )
        envoy = await process.start(bootstrap(config), tmp_path / "envoy")
        url = f"http://127.0.0.1:{envoy.ports['chat']}{CHAT}"
        try:
            async with aiohttp.ClientSession() as client:
                behaviour.release.clear()
                stream = await client.post(url, json=chat())
                served = (await stream.content.readany()).decode()
                (name,) = (each for each in ("a", "b") if pods.address(each) == served)
                other = pods.address("b" if name == "a" else "a")
                state = json.loads(await live.get("/v1/state"))["pools"][0]["endpoints"]
                assert sorted((each["namespace"], each["pod"], each["node"]) for each in state) == [
                    (namespace, "a", "node-1"),
                    (namespace, "b", "node-1"),
                ]

                await pods.terminate(name)
                await live.has(other)
                await eventually(lambda: addresses_of((eds / "chat.eds.json").read_text()) == {other})
                for path in ("/metrics", "/v1/state", "/v1/gauges"):
                    assert f'"{served}"' not in (text := await live.get(path))
                    assert other in text
                behaviour.release.set()
                for _ in range(3):
                    async with client.post(url, json=chat()) as answer:
                        assert await answer.text() == f"{other} done"
                assert (await stream.read()).decode() == " done"  # the running stream ended as it should
                stream.release()
                await eventually(lambda: live.agent.in_flight == 0)

                uid = pods.running[name].uid
                await pods.remove(name)
                await pods.create(name, LABELS)
                await live.has(pods.address(name), other)
                views = live.agent.pools["chat"].store.snapshot(live.clock.now()).endpoints
                (view,) = (each for each in views if each.address == pods.address(name))
                assert view.identity.uid == pods.running[name].uid != uid
                assert view.prefix.predicted == 0.0
        finally:
            await envoy.stop()


async def test_without_the_api_server_the_endpoints_stay_flagged_and_aged_until_it_is_back(
    control_plane: ControlPlane,
    namespace: str,
    crds: list[str],
    admin: Path,
    streams: tuple[Streams, Pods],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(informer, "MAX_BACKOFF_SECONDS", 0.5)
    _, pods = streams
    control_plane.api.create(inference_pool(namespace, "chat"))
    await pods.create("a", LABELS)
    pool = {"name": "chat", "inferencePool": "chat", "namespace": namespace}
    async with running(tmp_path / "igw.yaml", [pool], admin) as live:
        await live.has(pods.address("a"))
        source = f"InferencePool {namespace}/chat"
        assert await live.discovery() == {"source": source, "current": True, "age_seconds": 0.0, "problems": []}
        await asyncio.to_thread(control_plane.stop_api_server, abruptly=True)
        try:
            message = await live.problem("ApiUnavailable")
            assert source in message
            assert "the last known endpoints are kept" in message
            flagged = await live.discovery()
            assert not flagged["current"]
            assert flagged["age_seconds"] > 0
            later = await live.discovery()
            assert later["age_seconds"] > flagged["age_seconds"]
            assert list(live.endpoints()) == [pods.address("a")]
            assert 'igw_discovery_problems{pool="chat",reason="ApiUnavailable"} ' in await live.get("/metrics")
        finally:
            control_plane.start_api_server()  # in this thread: a program ends with the thread that started it
            control_plane.api.close()  # its connections ended with the server
        await found(live.discovery, lambda each: each["current"] and not each["problems"])
        await pods.create("b", LABELS)
        await live.has(pods.address("a"), pods.address("b"))
        assert [each.reason for each in live.recorder.of(SourceProblemSolved)] == ["ApiUnavailable"]


async def test_pools_of_several_namespaces_ranks_roles_a_selector_and_a_reload(
    control_plane: ControlPlane,
    namespace: str,
    crds: list[str],
    admin: Path,
    pod_addresses: PodAddresses,
    tmp_path: Path,
) -> None:
    other = f"{namespace}-other"
    control_plane.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
    streams = Streams()
    ports = tuple(range(8000, 8008))
    ranked = Pods(control_plane, namespace, pod_addresses, ports=ports, serve=streams.serve)
    single = Pods(control_plane, other, pod_addresses, serve=streams.serve)
    try:
        control_plane.api.create(inference_pool(namespace, "chat", *ports))
        await ranked.create("a", LABELS)
        await ranked.create("b", LABELS, annotations={"llm-d.ai/active-ports": "8000,8007"})
        await ranked.create("prefill", {**LABELS, "llm-d.ai/role": "prefill"})
        await ranked.create("pending", LABELS, ready=False)
        await single.create("a", LABELS)
        ranks = [f"{ranked.running['a'].address}:{port}" for port in ports]
        ranks += [f"{ranked.running['b'].address}:{port}" for port in (8000, 8007)]
        chat_pool = {"name": "chat", "inferencePool": "chat", "namespace": namespace}
        code = {"name": "code", "selector": LABELS, "targetPorts": [8000], "namespace": other}
        path = tmp_path / "igw.yaml"
        async with running(path, [chat_pool, code], admin) as live:
            await live.has(*ranks)
            await live.has(single.address("a"), pool="code")
            await single.make_unready("a")
            assert "none is ready" in await live.problem("NoReadyPods", "code")
            assert live.endpoints("code") == {}
            await single.make_ready("a")
            await live.has(single.address("a"), pool="code")
            # The sources change places: a list of addresses, and a selector that matches nothing.
            listed = {"name": "chat", "endpoints": [ranks[0]]}
            write(path, [listed, {**code, "selector": {"app": "absent"}}], admin)
            await live.has(ranks[0])
            assert "app=absent" in await live.problem("NoMatchingPods", "code")
            assert await live.discovery() is None
            write(path, [chat_pool, code], admin)
            await live.has(*ranks)
            await live.has(single.address("a"), pool="code")
    finally:
        await ranked.close()
        await single.close()
        control_plane.api.delete(f"/api/v1/namespaces/{other}")


async def test_a_pool_without_permission_names_the_remedy_and_another_pool_works(
    control_plane: ControlPlane,
    namespace: str,
    streams: tuple[Streams, Pods],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(informer, "MAX_BACKOFF_SECONDS", 0.5)
    _, pods = streams
    await pods.create("a", LABELS)
    account = create_service_account(control_plane.api, namespace, "igw")
    grant(control_plane.api, account, [READ_PODS], namespace)
    pool = {"name": "chat", "selector": LABELS, "targetPorts": [8000], "namespace": namespace}
    refused = {**pool, "name": "code", "namespace": "default"}
    async with running(tmp_path / "igw.yaml", [pool, refused], kubeconfig_of(control_plane, account)) as live:
        await live.has(pods.address("a"))
        message = await live.problem("Forbidden", "code")
        assert "deploy/kubernetes/pools" in message
        assert "namespace default" in message
        assert any("code" in why and "deploy/kubernetes/pools" in why for why in live.agent.readiness())
        assert [each.pool for each in live.recorder.of(SourceProblemFound)] == ["code"]
