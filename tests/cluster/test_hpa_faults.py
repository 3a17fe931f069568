"""The fault matrix: the real HPA controller reads every type of metric during every fault, all at the same time, and no
autoscaler shrinks by what the agent does not know."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from agent.clock import SystemClock
from agent.serve.metrics_api.answer import POOLS
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL
from tests.cluster.addresses import PodAddresses
from tests.cluster.aggregation import Aggregated, aggregated, all_available
from tests.cluster.api import Api, Object, RefusedByApi
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
from tests.cluster.pods import deployment
from tests.fakes.model_server import ModelServer, answer
from tests.waiting import eventually

REPLICAS: Final = 2
LOAD: Final = 10  # waiting requests of a server, and its tokens per second: the target of every autoscaler
KINDS: Final = ("pods", "object", "external")
DOWN, NAN, EMPTY, PARTIAL = "target-down", "nan", "empty-page", "partial-page"
RESTART, CLOCK, NO_API = "restart", "clock-step", "no-api-server"
FAULTS: Final = (DOWN, NAN, EMPTY, PARTIAL, RESTART, CLOCK, NO_API)
BLINDING: Final = (DOWN, NAN, EMPTY, PARTIAL)  # the number is unknown as long as the fault lasts
RATES: Final = (RESTART, CLOCK)  # these would disturb a rate, if anything
# The certificates of the cluster are valid from an hour ago: outside their time the agent knows no front proxy.
FORWARD_SECONDS: Final = 7200.0
BACK_SECONDS: Final = -3000.0


class Cell(NamedTuple):
    """A fault and a type of metric: a pool, a Deployment and an autoscaler of this name."""

    fault: str
    kind: str

    @property
    def name(self) -> str:
        return f"{self.fault}-by-{self.kind}"

    @property
    def metric(self) -> Object:
        rate = self.fault in RATES
        match self.kind:
            case "pods":
                return of_pods(
                    "igw_endpoint_generation_tokens_per_second" if rate else "igw_endpoint_waiting_requests", LOAD
                )
            case "object":
                return of_object(self.name, "llm_d_epp_average_queue_size", {"type": "Value", "value": str(LOAD)})
            case _:
                name = "igw_pool_generation_tokens_per_second" if rate else "igw_pool_waiting_requests"
                return external(self.name, name, LOAD)

    @property
    def expected(self) -> float:
        """What the agent serves while nothing is wrong."""
        return LOAD * REPLICAS if self.kind == "external" else LOAD

    def path(self, namespace: str) -> str:
        """Where the metrics APIs have it."""
        if self.kind == "external":
            name = self.metric["external"]["metric"]["name"]
            return f"/apis/{EXTERNAL}/v1beta1/namespaces/{namespace}/{name}?labelSelector=pool%3D{self.name}"
        base = f"/apis/{CUSTOM}/v1beta2/namespaces/{namespace}"
        if self.kind == "object":
            return f"{base}/{POOLS}/{self.name}/{self.metric['object']['metric']['name']}"
        return f"{base}/pods/*/{self.metric['pods']['metric']['name']}?labelSelector=app%3D{self.name}"


CELLS: Final = [Cell(fault, kind) for fault in FAULTS for kind in KINDS]
NAMES: Final = [cell.name for cell in CELLS]


class SteppingClock(SystemClock):
    """A clock whose wall time is set."""

    def __init__(self) -> None:
        self.step = 0.0

    def wall(self) -> float:
        return super().wall() + self.step


class LoadedServer(ModelServer):
    """A server with LOAD waiting requests that generates LOAD tokens per second, and shows it as its fault says."""

    def __init__(self) -> None:
        super().__init__(self._respond)
        self.fault = ""
        self._started = self._now()

    async def restart(self) -> None:
        """End, and begin again with all counters at 0."""
        await self.stop()
        self._started = self._now()
        await self.start(self.port, self.host)

    @staticmethod
    def _now() -> float:
        return SystemClock().now()

    async def _respond(self, server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        page = self._page() if path.endswith("/metrics") else b"{}"
        writer.write(answer(page, "200 OK", "Content-Type: text/plain; version=0.0.4\r\n"))

    def _page(self) -> bytes:
        if self.fault == EMPTY:
            return b""
        load: Any = "NaN" if self.fault == NAN else float(LOAD)
        tokens = "NaN" if self.fault == NAN else repr(LOAD * (self._now() - self._started))
        lines = [
            ("process_start_time_seconds", "gauge", "", repr(1.79e9 + self._started)),
            ("vllm:num_requests_running", "gauge", "", load),
            ("vllm:kv_cache_usage_perc", "gauge", "", 0.5),
            ("vllm:generation_tokens_total", "counter", "", tokens),
            ("vllm:num_requests_waiting", "gauge", "", load),
        ]
        text = "".join(f'# TYPE {name} {kind}\n{name}{{model_name="m"}} {value}\n' for name, kind, _, value in lines)
        return text.encode()[: text.index("waiting") if self.fault == PARTIAL else None]


class Matrix:
    """The servers of all pods, and what the metrics APIs have answered for each cell."""

    def __init__(self) -> None:
        self._servers: dict[str, LoadedServer] = {}
        self.answers: dict[str, set[str]] = {}

    async def serve(self, address: str, port: int) -> LoadedServer:
        server = LoadedServer()
        await server.start(port, address)
        self._servers[f"{address}:{port}"] = server
        return server

    async def begin(self, agent: Aggregated) -> None:
        """Let the faults of the servers begin."""
        for cell in CELLS:
            servers = [self._servers[address] for address in sorted(agent.live.endpoints(cell.name))]
            if cell.fault == DOWN:
                await servers[0].stop()
            elif cell.fault == RESTART:
                for server in servers:
                    await server.restart()
            else:
                for server in servers:
                    server.fault = cell.fault

    @asynccontextmanager
    async def sampling(self, control_plane: ControlPlane, namespace: str) -> AsyncIterator[None]:
        """Read every cell through the API server, one after the other, until the exit."""
        api = Api(control_plane.url, control_plane.client_ca, certificate=control_plane.admin)
        self.answers = {name: set() for name in NAMES}

        async def sample() -> None:
            while True:
                for cell in CELLS:
                    self.answers[cell.name].add(await asyncio.to_thread(read, api, cell.path(namespace)))

        task = asyncio.create_task(sample())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            api.close()

    def too_small(self, cell: Cell) -> list[str]:
        """The answers that would let the autoscaler shrink."""
        numbers = [each for each in self.answers[cell.name] if not each.startswith("HTTP")]
        values = {each: min(map(quantity, each.split())) for each in numbers}
        return [each for each, value in values.items() if value < 0.9 * cell.expected]


def read(api: Api, path: str) -> str:
    """The values of an answer, or the status of the refusal."""
    try:
        items = api.get(path)["items"]
    except RefusedByApi as refused:
        return f"HTTP {refused.status}"
    return " ".join(item["value"] for item in items) or "no items"


def quantity(text: str) -> float:
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def table(matrix: Matrix, scalers: WatchedAutoscalers) -> str:
    """What became of each cell."""
    rows = []
    for cell in CELLS:
        seen = sorted(matrix.answers[cell.name])
        active = scalers.active(cell.name)
        rows.append(
            f"{cell.fault:14} {cell.kind:9} desired {scalers.desired(cell.name)} ScalingActive {active.get('status')} "
            f"{active.get('reason')}; served {', '.join(seen[:3])}{' ...' if len(seen) > 3 else ''}"
        )
    return "\n".join(rows)


async def test_no_fault_makes_any_type_of_metric_zero_or_an_autoscaler_shrink(
    control_plane: ControlPlane, namespace: str, crds: list[str], tmp_path: Path, pod_addresses: PodAddresses
) -> None:
    api, matrix, clock = control_plane.api, Matrix(), SteppingClock()
    served = aggregated(
        control_plane,
        namespace,
        tmp_path,
        pod_addresses,
        matrix.serve,
        pools=NAMES,
        clock=clock,
        scrape={"interval": "500ms", "healthInterval": "1h"},
        state={"staleAfter": "2s"},
    )
    async with served as agent:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(agent.pods.follow())
            for name in NAMES:
                api.create(deployment(namespace, name, REPLICAS, {"app": name}))
            await eventually(
                lambda: all(list(agent.live.endpoints(name).values()) == ["healthy"] * REPLICAS for name in NAMES),
                within=60,
                what="the endpoints",
            )
            await all_available(api)
            scalers = WatchedAutoscalers(control_plane, namespace)
            await stack.enter_async_context(scalers.changes)
            services = await stack.enter_async_context(api_services(control_plane))
            for cell in CELLS:
                api.create(autoscaler(namespace, cell.name, cell.metric, maximum=4))
            await scalers.have(NAMES, REPLICAS)
            await scalers.are_active(NAMES, "True")

            async with matrix.sampling(control_plane, namespace):
                await matrix.begin(agent)
                clock.step = FORWARD_SECONDS
                await scalers.are_active([cell.name for cell in CELLS if cell.fault in BLINDING], "False")
                await scalers.read(NAMES)
                clock.step = BACK_SECONDS
                await scalers.are_active([cell.name for cell in CELLS if cell.fault not in BLINDING], "True")
                await scalers.read(NAMES)
            outcome = table(matrix, scalers)
            print(outcome)
            assert [line for cell in CELLS for line in matrix.too_small(cell)] == [], outcome
            wanted = {name: [each for each in scalers.desired(name) if each] for name in NAMES}
            assert wanted == {name: [REPLICAS] for name in NAMES}, outcome
            assert unavailable(services) == []
            for cell in CELLS:
                refused = {each for each in matrix.answers[cell.name] if each.startswith("HTTP")}
                assert refused <= {"HTTP 503"}, outcome
                assert bool(refused) == (cell.fault in BLINDING or (cell.fault == RESTART and cell.kind != "object"))

        # The API server is gone, and comes back.
        clock.step = 0.0
        await asyncio.to_thread(control_plane.stop_api_server, abruptly=True)
        await eventually(lambda: (source := agent.live.agent.pools[NAMES[-1]].source) and not source.current)
        control_plane.start_api_server()  # in this thread: the process ends with the thread that started it
        async with contextlib.AsyncExitStack() as stack:
            scalers = WatchedAutoscalers(control_plane, namespace)
            await stack.enter_async_context(scalers.changes)
            gone = [cell.name for cell in CELLS if cell.fault in (NO_API, CLOCK)]
            await scalers.read(gone, 3)
            await scalers.are_active(gone, "True")
            assert {name: scalers.desired(name) for name in NAMES} == {name: [REPLICAS] for name in NAMES}
