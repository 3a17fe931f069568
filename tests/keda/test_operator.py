"""A real KEDA scales the servers of a pool behind a real Envoy by the external scaler of the agent."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml

from agent.config.addresses import split_address
from agent.envoy import process
from agent.envoy.process import EnvoyProcess
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.events.flow import HeldAtZero
from agent.events.keda import PoolActivated, ScalerCalled, ScalerStreams
from tests.cluster import programs as control_plane_programs
from tests.cluster.addresses import PodAddresses
from tests.cluster.api import Object
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods, deployment, emulated
from tests.cluster.test_discovery import RunningAgent, running
from tests.fakes.ext_proc import CHAT
from tests.keda.operator import RunningKeda
from tests.keda.programs import KEDA
from tests.keda.recording import RecordingProxy
from tests.processes import ROOT
from tests.waiting import eventually

pytestmark = pytest.mark.keda

LABELS: Final = {"app": "chat"}
RECORDING: Final = ROOT / "tests" / "recordings" / "keda" / f"operator-{KEDA.version()}.jsonl"
COOLDOWN_SECONDS: Final = 3
FALLBACK: Final = yaml.safe_load((ROOT / "deploy" / "hpa" / "keda.yaml").read_text())["spec"]["fallback"]
# Reads of KEDA, one a second for each trigger: longer than the cool-down and the stabilisation of the HPA (5 s).
POLLS: Final = 16


def scaled_object(namespace: str, scaler: str, **more: Any) -> Object:
    """Held requests activate the pool; a replica is to have one running request."""

    def trigger(name: str, metric: str, threshold: str) -> Object:
        metadata = {"scalerAddress": scaler, "pool": "chat", "metric": metric, "threshold": threshold}
        return {"type": "external-push", "name": name, "metricType": "AverageValue", "metadata": metadata}

    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": {"name": "chat", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"name": "chat"},
            "minReplicaCount": 0,
            "maxReplicaCount": 4,
            "pollingInterval": 1,
            "cooldownPeriod": COOLDOWN_SECONDS,
            "triggers": [
                trigger("held", "igw_flow_held_requests", "8"),
                trigger("running", "igw_pool_running_requests", "1"),
            ],
            **more,
        },
    }


@dataclass
class ScaledPool:
    """A Deployment that KEDA scales, and the gateway before its pods."""

    plane: ControlPlane
    namespace: str
    live: RunningAgent
    url: str
    client: aiohttp.ClientSession
    proxy: RecordingProxy
    pods: Pods
    keda: RunningKeda
    began: float

    def note(self, text: str) -> None:
        """Print what happened, and when."""
        print(f"{time.monotonic() - self.began:7.2f} s  {text}", flush=True)

    async def replicas(self) -> int:
        path = f"/apis/apps/v1/namespaces/{self.namespace}/deployments/chat"
        found: Object = await asyncio.to_thread(self.plane.api.get, path)
        return int(found["spec"]["replicas"])

    async def scaled(self, fits: Callable[[int], bool], what: str, within: float = 60.0) -> float:
        """When the Deployment has replicas that fit, by the monotonic clock."""
        deadline = time.monotonic() + within
        while not fits(found := await self.replicas()):
            if time.monotonic() > deadline:
                pytest.fail(f"{what}: {found} replicas after {within:g} s")
        at = time.monotonic()
        self.note(f"{what}: {found} replicas")
        return at

    async def request(self, tokens: int) -> int:
        """Send a request through Envoy; its status."""
        body = {"model": "emulated", "max_tokens": tokens, "messages": [{"role": "user", "content": "hello"}]}
        async with self.client.post(self.url, json=body) as answer:
            await answer.read()
            return answer.status

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints about objects of the namespace."""
        kubeconfig = self.plane.folder / "keda.kubeconfig"
        command = [str(control_plane_programs.find()["kubectl"]), "--kubeconfig", str(kubeconfig)]
        command += ["--namespace", self.namespace, *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        return ran.stdout + ran.stderr


@asynccontextmanager
async def gateway(eds: Path, live: RunningAgent, folder: Path) -> AsyncIterator[EnvoyProcess]:
    """Envoy, which reads the endpoints from the files of the agent."""
    config = EnvoyConfig(
        (EnvoyPool("chat", (), live.pickers["chat"]),),
        (EnvoyListener("chat", "127.0.0.1:0", "chat", PickMode.FULL_DUPLEX),),
        eds_directory=str(eds),
    )
    envoy = await process.start(bootstrap(config), folder / "envoy")
    try:
        yield envoy
    finally:
        await envoy.stop()


@pytest.fixture
async def pool(
    control_plane: ControlPlane,
    keda: RunningKeda,
    namespace: str,
    pod_addresses: PodAddresses,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> AsyncIterator[ScaledPool]:
    """The parameter, where there is one, is the `fallback` of the ScaledObject."""
    fallback = getattr(request, "param", None)
    spec = {"fallback": fallback} if fallback else {}
    eds = tmp_path / "eds"
    eds.mkdir()
    settings = {
        "name": "chat",
        "namespace": namespace,
        "selector": LABELS,
        "targetPorts": [8000],
        "scaleFromZero": True,
    }
    kubeconfig = control_plane.folder / "keda.kubeconfig"
    more: dict[str, Any] = {"envoy": {"edsDirectory": str(eds)}, "keda": {"address": "127.0.0.1:0"}}
    pods = Pods(control_plane, namespace, pod_addresses, serve=emulated)
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        running(tmp_path / "igw.yaml", [settings], kubeconfig, **more) as live,
        gateway(eds, live, tmp_path) as envoy,
        aiohttp.ClientSession(timeout=timeout) as client,
        pods.follow(),
    ):
        host, port = split_address(live.agent.keda_address)
        proxy = RecordingProxy((host, int(port)))
        address = await proxy.start()
        await asyncio.to_thread(control_plane.api.create, deployment(namespace, "chat", 0, LABELS))
        await asyncio.to_thread(control_plane.api.create, scaled_object(namespace, address, **spec))
        url = f"http://127.0.0.1:{envoy.ports['chat']}{CHAT}"
        try:
            yield ScaledPool(control_plane, namespace, live, url, client, proxy, pods, keda, time.monotonic())
        finally:
            path = f"/apis/keda.sh/v1alpha1/namespaces/{namespace}/scaledobjects/chat"
            await asyncio.to_thread(control_plane.api.delete, path)
            await proxy.stop()
            (tmp_path / "operator.log").write_text(keda.log("keda-operator"))
    await pods.close()


async def test_a_held_request_starts_the_first_server_within_a_second_load_the_others_and_idleness_ends_them(
    pool: ScaledPool,
) -> None:
    recorder = pool.live.recorder
    await eventually(lambda: recorder.of(ScalerStreams) and recorder.of(ScalerStreams)[-1].open == 4, 60.0)
    pool.note("KEDA has opened two streams for each of two triggers")
    assert await pool.replicas() == 0

    first = asyncio.create_task(pool.request(4))
    await eventually(lambda: recorder.of(HeldAtZero))
    held_at = time.monotonic()
    pool.note("the first request is held at the gateway")
    seconds = await pool.scaled(lambda replicas: replicas == 1, "0 -> 1") - held_at
    print(f"           0 -> 1 within {seconds:.3f} s of the first held request", flush=True)
    assert seconds <= 1.0
    assert recorder.of(PoolActivated)[0] == PoolActivated("chat", 2, 1)
    assert await first == 200
    pool.note("the held request was answered with 200")

    requests = [asyncio.create_task(pool.request(1500)) for _ in range(4)]
    await pool.scaled(lambda replicas: replicas == 4, "four running requests, 1 -> N")
    print(await asyncio.to_thread(pool.kubectl, "get", "hpa,scaledobject"), flush=True)
    assert await asyncio.gather(*requests) == [200] * 4
    idle_at = time.monotonic()
    pool.note("the last request has ended")

    seconds = await pool.scaled(lambda replicas: replicas == 0, "back to 0") - idle_at
    print(f"           0 replicas {seconds:.1f} s after it, with a cool-down of {COOLDOWN_SECONDS} s", flush=True)
    # KEDA counts from the last poll that found the pool active, in whole seconds.
    assert seconds >= COOLDOWN_SECONDS - 1

    # A request that arrives before may be sent to a pod that ends.
    await eventually(lambda: not pool.live.endpoints())
    again = asyncio.create_task(pool.request(4))
    await pool.scaled(lambda replicas: replicas == 1, "the next request, 0 -> 1")
    assert await again == 200
    calls: dict[str, int] = {}
    for event in recorder.of(ScalerCalled):
        calls[f"{event.rpc} {event.result}"] = calls.get(f"{event.rpc} {event.result}", 0) + 1
    print(json.dumps(calls, indent=1, sort_keys=True), flush=True)
    if os.environ.get("IGW_RECORD_KEDA"):
        about = {"program": "keda-operator", "version": KEDA.version(), "test": "tests/keda/test_operator.py"}
        pool.proxy.write(RECORDING, **about)


@pytest.mark.parametrize("pool", [None, FALLBACK], ids=["no fallback", "fallback of the recipe"], indirect=True)
async def test_replicas_stay_while_the_values_are_unknown_and_while_the_agent_is_gone(pool: ScaledPool) -> None:
    recorder = pool.live.recorder
    requests = [asyncio.create_task(pool.request(3000)) for _ in range(4)]
    await pool.scaled(lambda replicas: replicas == 4, "four requests")
    await eventually(lambda: len(pool.pods.running) == 4)
    for name in tuple(pool.pods.running):
        await pool.pods.stop_server(name)
    pool.note("every model server is gone, and its pod is still ready")
    await asyncio.gather(*requests, return_exceptions=True)

    def withheld(rpc: str) -> int:
        return sum(event.rpc == rpc and event.result == "withheld" for event in recorder.of(ScalerCalled))

    before = withheld("GetMetrics")
    await eventually(lambda: withheld("GetMetrics") >= before + POLLS, 60.0)
    pool.note(f"{POLLS} reads of KEDA were answered with the reason why there is no value")
    assert await pool.replicas() == 4

    await pool.live.agent.stop(grace=0)
    pool.note("the agent is gone")
    await eventually(lambda: _failed_calls(pool) >= 2 * POLLS, 60.0)
    pool.note(f"{2 * POLLS} calls of KEDA failed")
    print(await asyncio.to_thread(pool.kubectl, "get", "hpa,scaledobject"), flush=True)
    assert await pool.replicas() == 4


def _failed_calls(pool: ScaledPool) -> int:
    """How many calls did not reach the agent, by the log of the operator; a poll makes two or more for each trigger."""
    lines = pool.keda.log("keda-operator").splitlines()
    return sum("connection error" in line and f'"{pool.namespace}"' in line for line in lines)
