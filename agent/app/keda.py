"""The external scaler of KEDA as a component: its gRPC port, and what it reads of the pools."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from agent.app.certificates import load
from agent.app.component import CannotStart
from agent.app.listen import check_address
from agent.app.pool import Pool
from agent.clock import Clock
from agent.config.addresses import join_address, split_address
from agent.config.config import Config
from agent.events import Event, Hook
from agent.events.flow import HeldAtZero, RequestHeld
from agent.events.keda import ScalerCalled
from agent.scaling.activity import Activity, activity
from agent.scaling.metric_source import PoolValue, StoreMetrics
from agent.scaling.served_metrics import WithheldMetric
from agent.serve.grpc.health import HealthService
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import GrpcRouter
from agent.serve.keda.service import BROKEN, ERROR, ExternalScalerService
from agent.serve.tls.server import ServerTls
from agent.state.snapshot import Snapshot


class PoolActivities:
    """The pools as the external scaler reads them. `held_by_peers` returns the requests that other replicas hold for a
    pool; `unknown_peers` are those whose part of a sum is unknown."""

    def __init__(
        self,
        pools: Callable[[], Mapping[str, Pool]],
        held_by_peers: Callable[[str], int],
        unknown_peers: Callable[[], Sequence[str]],
    ) -> None:
        self._pools = pools
        self._held_by_peers = held_by_peers
        self._unknown_peers = unknown_peers

    def names(self) -> Collection[str]:
        """The names of the pools."""
        return self._pools().keys()

    def snapshot(self, pool: str, now: float) -> Snapshot:
        """The state of the pool's endpoints."""
        return self._pools()[pool].store.snapshot(now)

    def activity(self, pool: str, max_age: float, now: float) -> Activity | WithheldMetric:
        """Whether the pool has requests; idle only by pages of at most this age in seconds."""
        return activity(self.snapshot(pool, now), self.held(pool), now, self._unknown_peers(), max_age)

    def held(self, pool: str) -> int:
        """The requests that all known replicas hold for the pool."""
        return self._pools()[pool].held + self._held_by_peers(pool)


class KedaScaler:
    """Serves the external scaler. Without `keda.address` it does nothing. `address` is where it listens, once it is
    started. `held` returns the requests that all replicas hold for a pool, `demand` its demand in replicas."""

    name = "keda"

    def __init__(
        self,
        config: Config,
        pools: PoolActivities,
        held: PoolValue,
        demand: PoolValue,
        clock: Clock,
        hook: Hook,
        tls: ServerTls | None = None,
    ) -> None:
        self.address = ""
        self._pools = pools
        self._settings = config.keda
        self._hook = hook
        self._tls = tls
        self._listening = False
        self._source = StoreMetrics(
            pools.snapshot,
            config.metrics_api.min_coverage,
            held,
            demand,
        )
        self._service = ExternalScalerService(pools, self._source, config.metrics_api.max_age, clock.now, hook)
        self._health = HealthService(lambda: self._listening, (self._service.name,))
        router = GrpcRouter((self._service, self._health), self._handler_failed)
        self._listener = GrpcListener(router, self._connection_failed, tls)

    def observe(self, event: Event) -> None:
        """An event of flow control: a held request reaches KEDA with it."""
        if type(event) is RequestHeld or type(event) is HeldAtZero:
            self._service.wake(event.pool)

    def wake(self, pool: str) -> None:
        """Another replica holds requests for the pool."""
        if pool in self._pools.names():
            self._service.wake(pool)

    async def start(self) -> None:
        """Listen. Raises CannotStart."""
        settings = self._settings
        if not settings.enabled:
            return
        check_address(settings.address, "address for KEDA", "keda.address")
        if self._tls is not None:
            load(self._tls)
        try:
            port = await self._listener.listen(*split_address(settings.address))
        except OSError as error:
            raise CannotStart(f"the address for KEDA {settings.address} cannot be listened on: {error}") from error
        self._listening = True
        self.address = join_address(split_address(settings.address)[0], port)

    async def apply(self, config: Config) -> None:
        """Take over the limits of values. Pools are read for each call, and the port needs a restart."""
        self._source.min_coverage = config.metrics_api.min_coverage
        self._service.max_age = config.metrics_api.max_age

    def readiness(self) -> list[str]:
        """Always ready."""
        return []

    async def stop(self, grace: float) -> None:
        """Finish the streams and close."""
        if not self._listening:
            return
        self._listening = False
        self._health.stop()
        self._service.stop()
        self._listener.goaway()
        await self._listener.close()

    def _handler_failed(self, path: str, error: Exception) -> None:
        self._hook(ScalerCalled(path.rpartition("/")[2], "", "", ERROR, repr(error)))

    def _connection_failed(self, detail: str) -> None:
        self._hook(ScalerCalled("", "", "", BROKEN, f"HTTP/2: {detail}"))
