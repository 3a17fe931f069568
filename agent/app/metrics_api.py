"""The custom and external metrics APIs as a component: the port, who may read it, and where its values come from."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from agent.app.certificates import load
from agent.app.component import CannotStart
from agent.app.lease import ReplicaLease, lease_namespace
from agent.app.listen import check_address
from agent.app.pool import Pool
from agent.app.software import software
from agent.app.tasks import Task, Tasks
from agent.clock import Clock
from agent.config.addresses import join_address, split_address
from agent.config.config import Config
from agent.config.metrics_api import KUBERNETES, MetricsApiConfig
from agent.config.pools import EndpointConfig, PoolConfig
from agent.events import Event, Hook
from agent.events.access import AccessChecked
from agent.events.metrics_api import MetricsAccessChecked, MetricsApiProblem
from agent.kube.authn.access import Access
from agent.kube.authn.identity import Trust
from agent.kube.authn.review_client import ReviewClient
from agent.kube.authn.standing_groups import StandingGroups
from agent.kube.cluster import Cluster, own_namespace
from agent.kube.errors import NoCluster
from agent.scaling.metric_source import PoolValue, StoreMetrics, not_computed
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.serve.http.server import CannotListen
from agent.serve.metrics_api.access import ApiAccess
from agent.serve.metrics_api.answer import PodOfEndpoint, PoolOfApi, ReadLimits
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL, VERSIONS
from agent.serve.metrics_api.server import MetricsApiServer, MetricsView
from agent.serve.tls.files import CertificatePair, TlsProblem
from agent.serve.tls.server import ServerTls

if TYPE_CHECKING:  # they need the package `cryptography`, which only the extras install
    from agent.kube.authn.trust_source import TrustSource
    from agent.kube.serving_certificate import ServingCertificate

Pools = Callable[[], Mapping[str, Pool]]


class _KnownPool(NamedTuple):
    """A pool as the APIs know it, the endpoints that it was made of, and their pods as `namespace/name` by address."""

    endpoints: Mapping[str, EndpointConfig]
    pool: PoolOfApi
    pods: Mapping[str, str]


class MetricsApi:
    """A component; without `metricsApi.address` it does nothing. `address` is where it listens, once it is started.

    `held` returns the requests that all replicas hold for a pool, `demand` its demand in replicas; both may be replaced
    before the start. Until then the held requests are those of this replica.
    """

    name = "metrics-api"

    def __init__(
        self,
        config: Config,
        pools: Pools,
        cluster: Cluster,
        clock: Clock,
        tasks: Tasks,
        hook: Hook,
        tls: ServerTls | None,
        lease: ReplicaLease,
    ) -> None:
        self.address = ""
        self.held: PoolValue = self._own_held
        self.demand: PoolValue = not_computed
        self._config = config
        self._settings = settings = config.metrics_api
        self._pools = pools
        self._cluster = cluster
        self._clock = clock
        self._tasks = tasks
        self._hook = hook
        self._tls = tls
        self._lease = lease
        self._own_namespace = ""
        self._known: dict[str, _KnownPool] = {}
        self._trust: TrustSource | None = None
        self._following: list[Task] = []
        self._server: MetricsApiServer | None = None
        if settings.enabled:
            self._server = self._made(settings)

    def held_of(self, pool: str, now: float) -> ServedValue | WithheldMetric:
        """`held` as it is set now, for another port that serves metrics."""
        return self.held(pool, now)

    def demand_of(self, pool: str, now: float) -> ServedValue | WithheldMetric:
        """`demand` as it is set now, for another port that serves metrics."""
        return self.demand(pool, now)

    # -- component ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. Raises CannotStart. An API server that does not answer yet is no reason: until its authorities are
        known its requests are refused, and the port's own /readyz says so."""
        if self._server is None:
            return
        if self._trust is None and self._settings.auth == KUBERNETES:
            raise CannotStart(
                f"metricsApi.auth: {KUBERNETES} needs packages that are not installed; "
                "pip install 'inference-gateway-agent[kubernetes]', or write auth: none"
            )
        configured = self._settings.address
        check_address(configured, "metrics API address", "metricsApi.address")
        if self._tls is not None:
            load(self._tls)
        if self._trust is not None:
            try:
                await self._cluster.connect()
            except NoCluster as error:
                raise CannotStart(f"metricsApi.auth: {KUBERNETES}: {error}") from error
            self._following.append(self._tasks.run("metrics-api-trust", self._trust.run))
        if self._settings.own_authority:
            self._following.append(self._tasks.run("metrics-api-certificate", (await self._certificate()).run))
        try:
            port = await self._server.http.start()
        except CannotListen as error:
            raise CannotStart(str(error)) from error
        self.address = join_address(split_address(configured)[0], port)

    async def apply(self, config: Config) -> None:
        """Take over the limits; the other options need a restart."""
        self._config = config
        self._known.clear()
        if self._server is not None:
            self._server.limits = _limits(config.metrics_api)

    def readiness(self) -> list[str]:
        """Always ready: what keeps autoscalers out must not keep requests from being picked for."""
        return []

    async def stop(self, grace: float) -> None:
        """Finish the responses in progress, close."""
        for task in self._following:
            task.cancel()
        self._following.clear()
        if self._server is not None:
            await self._server.http.stop()

    # -- within ------------------------------------------------------------------------------------------------------

    def _made(self, settings: MetricsApiConfig) -> MetricsApiServer:
        groups = tuple(name for name, on in ((CUSTOM, settings.custom), (EXTERNAL, settings.external)) if on)
        authorize: ApiAccess | None = None
        if settings.auth == KUBERNETES and find_spec("cryptography") is not None:
            from agent.kube.authn.trust_source import TrustSource

            self._trust = TrustSource(self._cluster, self._trust_changed)
            reviews = ReviewClient(self._cluster, (), self._clock)
            access = Access(reviews, StandingGroups(reviews), self._clock, self._checked, self._trusted)
            authorize = ApiAccess(access, frozenset(groups))
        return MetricsApiServer(
            settings.address,
            groups=groups,
            view=self._view,
            limits=_limits(settings),
            clock=self._clock,
            hook=self._hook,
            software=software() or "0",
            authorize=authorize,
            tls=self._tls,
            not_ready=self._not_ready,
        )

    def _checked(self, event: Event) -> None:
        """A check of a sender: those of the admin address are counted apart."""
        self._hook(MetricsAccessChecked(*event) if isinstance(event, AccessChecked) else event)

    async def _certificate(self) -> ServingCertificate:
        """What keeps the port's certificate. Raises CannotStart."""
        from agent.kube.serving_certificate import ServingCertificate, ServingPlace

        namespace = await asyncio.to_thread(lease_namespace, self._config)
        if not namespace:
            raise CannotStart("metricsApi.service: the agent runs outside a cluster; set kubernetes.lease.namespace")
        settings = self._settings
        service = settings.service
        groups = [name for name, on in ((CUSTOM, settings.custom), (EXTERNAL, settings.external)) if on]
        names = [f"{version}.{group}" for group in groups for version in VERSIONS[group]]
        place = ServingPlace(namespace, f"{service}-ca", service, names)
        return ServingCertificate(
            self._cluster, self._clock, place, self._lease.send, self._lease.held, self._serve_with, self._problem
        )

    def _serve_with(self, pair: CertificatePair) -> None:
        if self._tls is not None:
            self._tls.set_certificate(pair, f"Secret {self._settings.service}-ca")

    def _problem(self, detail: str) -> None:
        self._hook(MetricsApiProblem(detail))

    def _trusted(self) -> Trust:
        return Trust() if self._trust is None else self._trust.trust

    def _trust_changed(self) -> None:
        """New connections are accepted with certificates of the authorities that are known now."""
        trust = self._trust
        if trust is None:
            return
        for problem in trust.problems:
            self._hook(MetricsApiProblem(problem))
        if self._tls is not None:
            try:
                self._tls.set_client_cas(trust.trust.pem)
            except TlsProblem as problem:
                self._hook(MetricsApiProblem(str(problem)))

    def _not_ready(self) -> list[str]:
        if self._trust is None or self._trust.trust != Trust():
            return []
        return list(self._trust.problems)

    def _view(self, now: float) -> MetricsView:
        """The pools, and their values at `now`."""
        pools = self._pools()
        snapshots = {name: pool.store.snapshot(now) for name, pool in pools.items()}
        settings = {each.name: each for each in self._config.pools}
        shown = [self._pool(settings[name], pool.endpoints) for name, pool in pools.items() if name in settings]
        coverage = self._config.metrics_api.min_coverage
        names = {each.name: self._known[each.name].pods for each in shown}
        source = StoreMetrics(lambda pool, _: snapshots[pool], coverage, self.held, self.demand, names.__getitem__)
        return MetricsView(shown, source)

    def _pool(self, settings: PoolConfig, endpoints: Mapping[str, EndpointConfig]) -> PoolOfApi:
        """The pool as the APIs know it; made again when its endpoints change."""
        known = self._known.get(settings.name)
        if known is not None and known.endpoints is endpoints:
            return known.pool
        pods = {}
        for address, endpoint in endpoints.items():
            namespace, _, name = endpoint.pod.rpartition("/")
            if name:
                pods[address] = PodOfEndpoint(namespace, name, dict(endpoint.labels))
        namespace = settings.namespace or self._config.kubernetes.namespace
        if not namespace and not settings.in_cluster:
            namespace = next((pod.namespace for pod in pods.values()), "")
        found = PoolOfApi(settings.name, namespace or self._namespace(), settings.inference_pool, pods)
        names = {address: f"{pod.namespace}/{pod.name}" for address, pod in pods.items()}
        self._known[settings.name] = _KnownPool(endpoints, found, names)
        return found

    def _namespace(self) -> str:
        """The agent's own namespace; empty outside a cluster."""
        if not self._own_namespace:
            with contextlib.suppress(NoCluster):
                self._own_namespace = own_namespace()
        return self._own_namespace

    def _own_held(self, pool: str, now: float) -> ServedValue | WithheldMetric:
        return ServedValue(float(self._pools()[pool].flow_report(now).requests), now)


def _limits(settings: MetricsApiConfig) -> ReadLimits:
    return ReadLimits(settings.max_age, settings.min_coverage)
