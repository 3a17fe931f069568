"""The real HPA controller scales emulated model servers that carry load through a real Envoy, which the agent picks
for; and it never shrinks what it cannot see."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp

from agent.clock import SystemClock
from agent.emulator.config import EmulatorConfig, ModelSpec
from agent.emulator.server import EmulatedServer
from agent.envoy import process
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, bootstrap
from agent.events.kubernetes import ObjectProblemFound
from agent.signals import RUNNING
from tests.cluster.access import create_service_account, grant, kubeconfig_of
from tests.cluster.addresses import PodAddresses
from tests.cluster.aggregation import Aggregated, aggregated, all_available
from tests.cluster.autoscalers import (
    WatchedAutoscalers,
    api_services,
    autoscaler,
    external,
    of_object,
    of_pods,
    unavailable,
)
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods, deployment
from tests.cluster.test_discovery import LABELS, READ_PODS, RunningAgent, inference_pool, running
from tests.fakes.ext_proc import CHAT
from tests.waiting import eventually, found

PER_REPLICA: Final = 8
TYPES: Final = {
    "by-pods": of_pods("igw_endpoint_running_requests", PER_REPLICA),
    "by-object": of_object(
        "by-object", "igw_pool_running_requests", {"type": "AverageValue", "averageValue": str(PER_REPLICA)}
    ),
    "by-external": external("by-external", "igw_pool_running_requests", PER_REPLICA),
}


class BusyServer:
    """An emulated server whose port closes when `left` says that no request comes any more and its last one has ended,
    as in a pod's grace period."""

    def __init__(self, left: Callable[[], bool]) -> None:
        self._left = left
        config = EmulatorConfig(step_seconds=0.08, step_seconds_per_request=0.0)
        self.server = EmulatedServer(config, ModelSpec(), SystemClock(), die=lambda: None)

    async def stop(self) -> None:
        await eventually(self._left, what="the end of the endpoint")
        await eventually(lambda: self.server.in_flight == 0, what="the end of the last request")
        await self.server.stop()


class Fleet:
    """The servers of the pods, by address. `endpoints` returns those that may get requests."""

    def __init__(self) -> None:
        self.endpoints: Callable[[], Collection[str]] = tuple
        self._servers: dict[str, EmulatedServer] = {}

    async def serve(self, address: str, port: int) -> BusyServer:
        name = f"{address}:{port}"
        made = BusyServer(lambda: name not in self.endpoints())
        await made.server.start(address, port)
        self._servers[name] = made.server
        return made

    def set_metrics(self, addresses: list[str], fault: str) -> None:
        for address in addresses:
            server = self._servers[address]
            server.faults = server.faults.changed({"metrics": fault})


class Clients:
    """Clients that each send a request to every pool when its last one has ended. `statuses` are those of all answers
    so far."""

    def __init__(self, http: aiohttp.ClientSession, urls: dict[str, str]) -> None:
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        self._http = http
        self._urls = urls
        self._clients = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def set_clients(self, count: int) -> None:
        """So many for each pool; those that are too many end after their request."""
        before, self._clients = self._clients, count
        for number in range(before, count):
            self._tasks |= {asyncio.create_task(self._run(number, url)) for url in self._urls.values()}

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, number: int, url: str) -> None:
        words = [{"role": "user", "content": f"hello from {number}"}]
        # Answers of different lengths, so that clients do not keep step: the servers are never all idle.
        request = {"model": "emulated", "messages": words, "max_tokens": 60 + number}
        while number < self._clients:
            async with self._http.post(url, json=request) as answer:
                body = await answer.read()
                self.statuses[answer.status] += 1
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {body[:200].decode()}")


@contextlib.asynccontextmanager
async def gateway(live: RunningAgent, folder: Path, eds: Path) -> AsyncIterator[Clients]:
    """An Envoy with a listener for each pool, and clients of it."""
    config = EnvoyConfig(
        tuple(EnvoyPool(name, (), address) for name, address in live.pickers.items()),
        tuple(EnvoyListener(name, "127.0.0.1:0", name) for name in live.pickers),
        eds_directory=str(eds),
    )
    envoy = await process.start(bootstrap(config), folder / "envoy")
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
            load = Clients(http, {name: f"http://127.0.0.1:{envoy.ports[name]}{CHAT}" for name in live.pickers})
            try:
                yield load
            finally:
                await load.close()
    finally:
        await envoy.stop()


def requests(live: RunningAgent, pool: str) -> float:
    """The running requests that the pool's servers report."""
    views = live.agent.pools[pool].store.snapshot(live.clock.now()).endpoints
    values = [view.readings[RUNNING].value for view in views if RUNNING in view.readings]
    return sum(value for value in values if isinstance(value, float))


async def gauges(live: RunningAgent, name: str) -> dict[str, float]:
    """The gauges of the autoscaler `name` of the pool `name`, on the page for Prometheus."""
    pattern = rf'^igw_hpa_(\w+){{hpa="{name}",hpa_namespace="[\w-]+",pool="{name}"}} (\S+)$'
    return {each[1]: float(each[2]) for each in re.finditer(pattern, await live.get("/metrics"), re.MULTILINE)}


async def test_the_controller_scales_up_holds_and_down_and_never_shrinks_what_it_cannot_see(
    control_plane: ControlPlane, namespace: str, crds: list[str], tmp_path: Path, pod_addresses: PodAddresses
) -> None:
    api, fleet = control_plane.api, Fleet()
    eds = tmp_path / "eds"
    eds.mkdir()
    async with contextlib.AsyncExitStack() as stack:
        agent: Aggregated = await stack.enter_async_context(
            aggregated(
                control_plane,
                namespace,
                tmp_path,
                pod_addresses,
                fleet.serve,
                pools=tuple(TYPES),
                kubernetes={"autoscalers": True},
                envoy={"edsDirectory": str(eds)},
                scrape={"interval": "250ms"},
                state={"staleAfter": "1s"},  # readings of a sum are no further apart, while requests move to new pods
            )
        )
        live = agent.live
        fleet.endpoints = lambda: {each for name in TYPES for each in live.endpoints(name)}
        stack.callback(setattr, fleet, "endpoints", tuple)
        await stack.enter_async_context(agent.pods.follow())
        for name in TYPES:
            api.create(deployment(namespace, name, 1, {"app": name}))
        await eventually(lambda: all(len(live.endpoints(name)) == 1 for name in TYPES), what="an endpoint each")
        load = await stack.enter_async_context(gateway(live, tmp_path, eds))
        load.set_clients(4 * PER_REPLICA)
        await all_available(api)
        services = await stack.enter_async_context(api_services(control_plane))
        scalers = WatchedAutoscalers(control_plane, namespace)
        await stack.enter_async_context(scalers.changes)
        await eventually(lambda: all(requests(live, name) > 3 * PER_REPLICA for name in TYPES), what="the load")
        for name, metric in TYPES.items():
            api.create(autoscaler(namespace, name, metric, maximum=8))

        # Up, and it holds, as the agent's own gauges say.
        await scalers.have(TYPES, 4)
        await eventually(lambda: all(len(live.endpoints(name)) == 4 for name in TYPES), what="four endpoints each")
        expected = {"desired_replicas": 4, "current_replicas": 4, "min_replicas": 1, "max_replicas": 8}
        for name in TYPES:
            await found(partial(gauges, live, name), lambda seen: seen == expected | {"scaling_active": 1})
        await scalers.read(list(TYPES), 3)

        # Half of the pods fall silent, then all.
        addresses = {name: sorted(live.endpoints(name)) for name in TYPES}
        fleet.set_metrics([each for name in TYPES for each in addresses[name][:2]], "error")
        await scalers.are_active(TYPES, "False")
        await scalers.read(list(TYPES))
        fleet.set_metrics([each for name in TYPES for each in addresses[name]], "error")
        await eventually(lambda: {each for name in TYPES for each in live.endpoints(name).values()} == {"blind"})
        await scalers.read(list(TYPES))
        for name in TYPES:
            await found(partial(gauges, live, name), lambda seen: seen == expected | {"scaling_active": 0})
        fleet.set_metrics([each for name in TYPES for each in addresses[name]], "ok")
        await scalers.are_active(TYPES, "True")
        await scalers.read(list(TYPES))
        for name in TYPES:
            wanted = scalers.desired(name)
            assert (wanted, wanted[-1]) == (sorted(wanted), 4), scalers.history(name)

        # Half of the load ends. The requests of pods that end are no load of the others: the number may be too small
        # until their clients are back.
        load.set_clients(2 * PER_REPLICA)

        def two_replicas() -> bool:
            return all(
                scalers.desired(name)[-1:] == [2]
                and len(live.endpoints(name)) == 2
                and requests(live, name) > PER_REPLICA
                for name in TYPES
            )

        while not two_replicas():
            await eventually(two_replicas, within=60, what="two replicas each")
            await scalers.read(list(TYPES))
        assert unavailable(services) == []
        assert load.failures == []

        # The agent is killed.
        before = {name: scalers.desired(name) for name in TYPES}
        await live.agent.stop(grace=0)
        await scalers.are_active(TYPES, "False")
        await scalers.read(list(TYPES))
        assert {name: scalers.desired(name) for name in TYPES} == before
        assert {wanted[-1] for wanted in before.values()} == {2}


async def test_without_the_right_to_read_autoscalers_the_log_names_it_and_the_pool_goes_on(
    control_plane: ControlPlane, namespace: str, crds: list[str], tmp_path: Path, pods: Pods
) -> None:
    account = create_service_account(control_plane.api, namespace, "agent")
    pools = {"apiGroups": ["inference.networking.k8s.io"], "resources": ["inferencepools"], "verbs": ["list", "watch"]}
    grant(control_plane.api, account, [READ_PODS, pools], namespace)
    control_plane.api.create(inference_pool(namespace, "chat"))
    await pods.create("a", LABELS)
    kubeconfig = kubeconfig_of(control_plane, account)
    pool = {"name": "chat", "inferencePool": "chat", "namespace": namespace}
    kubernetes = {"kubeconfig": str(kubeconfig), "events": False, "autoscalers": True}
    async with running(tmp_path / "igw.yaml", [pool], kubeconfig, kubernetes=kubernetes) as live:
        await eventually(lambda: pods.address("a") in live.endpoints(), what="the endpoint")

        def named() -> list[str]:
            problems = live.recorder.of(ObjectProblemFound)
            return [each.message for each in problems if "horizontalpodautoscalers" in each.message]

        (message,) = await eventually(named, what="the missing right")
        assert message.startswith(f"namespace {namespace}: the agent may not read horizontalpodautoscalers")
        assert message.endswith("apply deploy/kubernetes/pools there, or set kubernetes.autoscalers to false")
        assert live.agent.readiness() == []
        # With the right, the gauges come without a restart.
        scalers = {"apiGroups": ["autoscaling"], "resources": ["horizontalpodautoscalers"], "verbs": ["list", "watch"]}
        grant(control_plane.api, account, [READ_PODS, pools, scalers], namespace)
        metric = of_object("chat", "igw_pool_running_requests", {"type": "Value", "value": "1"})
        control_plane.api.create(autoscaler(namespace, "chat", metric, maximum=3))
        limits = {"min_replicas": 1, "max_replicas": 3}
        await found(partial(gauges, live, "chat"), lambda seen: limits.items() <= seen.items(), 60, what="the limits")
        assert "desired_replicas" not in await gauges(live, "chat")  # there is no Deployment `chat`
