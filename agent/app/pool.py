"""One pool as a component: its discovery, its routing state, its scrape targets, its pipeline, and its picker port."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from agent.app.certificates import load
from agent.app.component import CannotStart
from agent.app.endpoint_files import EndpointFiles
from agent.app.flow_control import header_rules, holding_settings
from agent.app.listen import check_address
from agent.app.tasks import Task, Tasks
from agent.app.wake_timer import WakeTimer
from agent.clock import Clock
from agent.config.addresses import join_address, split_address
from agent.config.config import Config
from agent.config.outlier_detection import OutlierDetectionConfig
from agent.config.pools import EndpointConfig, PoolConfig
from agent.config.prefill_rate import PrefillRateConfig
from agent.discovery import discovery
from agent.discovery.endpoints import CannotDiscover, Discovery, DiscoveryParts, EndpointSet
from agent.engine_specs import AUTO
from agent.engines import engine as table_of
from agent.engines.custom import tables
from agent.engines.table import DEFAULT_PAGE_PATH, Engine
from agent.events import Event, Hook
from agent.events.discovery import SourceProblemFound, SourceProblemSolved
from agent.events.flow import DispatchRun
from agent.events.scraping import HealthChanged
from agent.flow.report import FlowReport
from agent.kube.cluster import Cluster
from agent.kube.objectives import NO_OBJECTIVES, PoolObjectives
from agent.kube.pool_endpoints import ObjectProblem
from agent.pick.decision import Pick
from agent.pick.profile import BadProfile, Profile, build
from agent.prefix.index import PrefixIndex
from agent.replicas.peer_part import PoolTarget, block_format
from agent.replicas.service import PoolKnowledge
from agent.requests.held_requests import HeldRequests
from agent.requests.load_reports import LoadReports
from agent.requests.objectives import RequestTerms
from agent.requests.outcomes import Outcomes
from agent.requests.pipeline import OnDecision, Pipeline, Stage
from agent.requests.response import Response
from agent.requests.sharing import NOT_SHARED, Sharing
from agent.requests.stages.cache_reset import CacheResetStage
from agent.requests.stages.parse import ParseStage
from agent.requests.stages.pick import PickStage
from agent.requests.stages.tokens import TokensStage
from agent.requests.ticket import Request, Ticket
from agent.scrape.loop import ScrapeLoop
from agent.scrape.model_refresh import ModelRefresh
from agent.scrape.server_access import HttpClientConfig, ServerAccess
from agent.scrape.target import Target
from agent.serve.ext_proc.actions import Mode
from agent.serve.ext_proc.holding import ProxyTimeouts
from agent.serve.ext_proc.server import ExtProcServer
from agent.serve.tls.server import ServerTls
from agent.signals import MODELS
from agent.state.health import Health
from agent.state.identity import Identity
from agent.state.outliers import OutlierLimits
from agent.state.prefill_rate import RateLimits
from agent.state.snapshot import EndpointView, Snapshot
from agent.state.source import SourceStatus
from agent.state.store import RoutingStore

# The modes by their names in the configuration.
MODES: Final = {
    "FULL_DUPLEX_STREAMED": Mode.FULL_DUPLEX,
    "BUFFERED": Mode.BUFFERED,
    "BUFFERED_PARTIAL": Mode.PARTIAL,
    "STREAMED": Mode.STREAMED,
    "NONE": Mode.NONE,
}
# How long a start or a reload waits for the first set of endpoints before it goes on without.
FIRST_ENDPOINTS_SECONDS: Final = 5.0
# Endpoints that are added or changed in one step, which takes some milliseconds.
ENDPOINTS_PER_STEP: Final = 15
# How often a start looks whether every endpoint was scraped: a fleet of 10,000 costs some milliseconds each time.
FIRST_SCRAPES_CHECK_SECONDS: Final = 0.05
# How long a start waits for the lists of models of servers whose page was read: they follow it at once, and a probe of
# the health path may come between (two time-outs of a probe).
FIRST_MODELS_SECONDS: Final = 1.0


def _alone(_pool: str, _knowledge: PoolKnowledge) -> Sharing:
    return NOT_SHARED


class PoolParts(NamedTuple):
    """What all pools of the process share.

    `remember` keeps picks for people to read: pool, pick, time. `on_endpoints` is called after each change of a pool's
    endpoints, which `endpoint_files` holds back until Envoy knows them. `cluster` is that of all pools whose endpoints
    are pods; it connects when one needs it. `on_source` is called with what is wrong with the source of a pool's
    endpoints. `tls` is that of the picker ports. `sharing` gives what takes a new pool's events for the other replicas,
    by its name and what it has learnt.
    """

    clock: Clock
    hook: Hook
    tasks: Tasks
    scrape_loop: ScrapeLoop
    remember: Callable[[str, Pick, float], None]
    on_endpoints: Callable[[], None]
    endpoint_files: EndpointFiles
    cluster: Cluster
    on_source: Callable[[str, Sequence[ObjectProblem]], None]
    tls: ServerTls | None = None
    sharing: Callable[[str, PoolKnowledge], Sharing] = _alone


class _FixedSize:
    """Replaces an index where `prefixIndex.autoSize` is off: cache sizes that servers report are ignored."""

    def __init__(self, index: PrefixIndex) -> None:
        self.clear = index.clear
        self.forget = index.forget

    def resize(self, address: str, capacity_blocks: int) -> None:
        """Every endpoint keeps the configured capacity."""


class Pool:
    """A component for one entry of `pools:`; also what its picker port calls (`agent.serve.ext_proc.server.PoolPort`).

    `address` is where the picker port listens, once it is started. `source` is the status of what its endpoints come
    from, None where the configuration lists them, and before the source has reported any. `objectives` are what the
    objects of the cluster say about its requests; `terms` follow from them and from those of the configuration.
    """

    def __init__(self, config: Config, settings: PoolConfig, parts: PoolParts) -> None:
        """Raises CannotStart for a profile that cannot be built, and for a source that cannot be used."""
        self.name = settings.name
        self.address = ""
        self.endpoints: Mapping[str, EndpointConfig] = {}
        self.source: SourceStatus | None = None
        self.objectives = NO_OBJECTIVES
        self._discovered: SourceStatus | None = None
        self._objectives_known = False
        self._other_problems: dict[str, tuple[ObjectProblem, ...]] = {}  # of the source, by who has found them
        self._config = config
        self._settings = settings
        self._parts = parts
        self._access = access_of(settings)
        index = config.prefix_index
        self.index = PrefixIndex(index.capacity_blocks, index.max_blocks)
        self.store = RoutingStore(
            settings.name,
            stale_after=config.state.stale_after,
            rate=rate_limits(config.prefill_rate),
            hook=self._observe,
            prefix=self.index if index.auto_size else _FixedSize(self.index),
            index_block_tokens=index.block_tokens,
            outliers=outlier_limits(config.outlier_detection),
        )
        self._reports = LoadReports(self.store, tables(config.engines), parts.hook)
        self._sharing = parts.sharing(settings.name, PoolKnowledge(self.store.learnt_rates, self.index.newest))
        self.outcomes = Outcomes(self.store, self.index, parts.hook, self._sharing)
        self.shared = PoolTarget(self.store, self.index, self.outcomes, block_format(index))
        self.flow_rules = header_rules(config)
        self.terms = RequestTerms(settings.name, parts.hook)
        self.terms.set_declared(config.objectives)
        profile = profile_of(config, settings)
        self._timer = WakeTimer(f"flow-control/{settings.name}", self._run_held, parts.clock, parts.hook)
        self._held = HeldRequests(
            self.store,
            self.index,
            profile,
            holding_settings(config, settings),
            self._timer.wake,
            random.random,
            parts.hook,
        )
        self._held.on_waiting = self._sharing.waiting
        self._pick = PickStage(
            self.store,
            self.index,
            profile,
            parts.clock.now,
            parts.hook,
            parts.remember,
            config.ext_proc.fallbacks,
            self.outcomes,
            self._unlisted,
            self._sharing,
            self._held,
            self.terms.terms,
        )
        resets = CacheResetStage(self._empty_cache, self.outcomes.awaited)
        self.outcomes.on_late_result.append(resets.reported)
        # The stages of a request, in order: a new one is a file in agent/requests/stages and a line here.
        stages: list[Stage] = [
            ParseStage(lambda: self.store.shared_engine, config.ext_proc.max_body, parts.hook, settings.name),
            resets,
            TokensStage(index.block_tokens, index.bytes_per_token, index.max_tokens),
            self._pick,
        ]
        self.pipeline = Pipeline(settings.name, stages, parts.clock.now, parts.hook, self._reports, self.outcomes)
        self._server = ExtProcServer(
            self,
            parts.hook,
            address=settings.ext_proc_address,
            max_body=config.ext_proc.max_body,
            max_buffered=config.ext_proc.max_buffered_bytes,
            assumed_mode=MODES[config.ext_proc.assumed_mode],
            timeouts=ProxyTimeouts(
                config.envoy.message_timeout, config.envoy.max_message_timeout, config.envoy.stream_idle_timeout
            ),
            tls=parts.tls,
        )
        self._discovery = self._discovery_of(config, settings)
        self._watching: Task | None = None
        self._known: EndpointSet | None = None
        self._applied = asyncio.Event()  # a set of endpoints has been applied since the stream began
        self._all_scraped = False
        self._model_refresh = ModelRefresh()

    # -- component ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Apply the first set of endpoints, wait for their first scrapes, and open the picker port.

        A proxy that finds the port open sends requests to it: before the first scrapes none could be picked for.
        """
        address = self._settings.ext_proc_address
        check_address(address, f"picker address of pool {self.name}", "--ext-proc-address or extProcAddress")
        if self._parts.tls is not None:
            load(self._parts.tls)
        await self._watch()
        await self._first_scrapes()
        try:
            port = await self._server.start()
        except OSError as error:
            raise CannotStart(str(error)) from error
        self.address = join_address(split_address(address)[0], port)

    async def apply(self, config: Config) -> None:
        """Take over limits, profile and endpoints: the next pick goes by the new profile; open streams continue."""
        settings = next(pool for pool in config.pools if pool.name == self.name)
        profile = profile_of(config, settings)
        if settings.source == self._settings.source:
            self._discovery.apply(settings, config)
        else:
            self._discovery = self._discovery_of(config, settings)
            self._source_changed(None)
        if inference_pool_of(settings, config) != inference_pool_of(self._settings, self._config):
            self.objectives, self._objectives_known = NO_OBJECTIVES, False
        if settings.scrape != self._settings.scrape:
            self._access = access_of(settings)
        self._config, self._settings = config, settings
        self.flow_rules = header_rules(config)
        self.terms.set_declared(config.objectives)
        self.terms.set_objects(self.objectives)
        self._pick.profile = self._held.profile = profile
        self._held.apply(holding_settings(config, settings))
        self._reports.tables = tables(config.engines)
        self.store.set_limits(
            stale_after=config.state.stale_after,
            rate=rate_limits(config.prefill_rate),
            now=self._parts.clock.now(),
            outliers=outlier_limits(config.outlier_detection),
        )
        self._known = None  # targets depend on the whole configuration
        await self._watch()

    def readiness(self) -> list[str]:
        """Endpoints that no scrape has reached yet. A pool that was ready once stays ready: an endpoint that comes or
        fails later must not take the agent out of service, because it can say why there is no pick."""
        if self._all_scraped:
            return []
        if self._known is None:
            problems = "; ".join(problem.message for problem in self.source.problems) if self.source else ""
            return [f"pool {self.name}: its endpoints are not known yet{': ' if problems else ''}{problems}"]
        snapshot = self.store.snapshot(self._parts.clock.now())
        left = unscraped(snapshot)
        self._all_scraped = not left
        return [f"pool {self.name}: {left} of {len(snapshot.endpoints)} endpoints were not scraped yet"] if left else []

    async def stop(self, grace: float) -> None:
        """Wait for requests without a decision, close the picker port, and stop scraping: until then pages show where
        there is room for what is held."""
        try:
            await self._server.stop(grace)
        finally:
            self._timer.stop()
            if self._watching is not None:
                self._watching.cancel()
                self._watching = None
            self._parts.scrape_loop.set_targets(self.name, [], self.store)

    # -- what the picker port calls ----------------------------------------------------------------------------------

    def submit(self, request: Request, on_decision: OnDecision) -> Ticket:
        """Submit a request to the pipeline."""
        self.terms.check(request.flow_headers)
        return self.pipeline.submit(request, on_decision)

    def log_opened(self) -> None:
        """A proxy begins to send its access log."""
        self.outcomes.log_opened()

    def log_closed(self) -> None:
        """A proxy has ended its access log."""
        self.outcomes.log_closed()

    def logged(self, request_id: str, response: Response) -> None:
        """The proxy's log says how a request ended."""
        self.outcomes.logged(request_id, response, self._parts.clock.now())

    @property
    def reports(self) -> bool:
        """Whether model servers are requested to send a load report with each response."""
        return self._settings.orca

    def ready(self) -> bool:
        """True once every endpoint was scraped, with whatever result: from then on a decision rests on knowledge."""
        return self._all_scraped or not self.readiness()

    @property
    def declared_models(self) -> tuple[str, ...]:
        """The models and adapters that the configuration names."""
        return self._settings.models

    @property
    def in_flight(self) -> int:
        """Requests that were picked and have not ended."""
        return self.pipeline.in_flight

    @property
    def profile(self) -> Profile:
        """The profile of the next pick."""
        return self._pick.profile

    def flow_report(self, now: float, *, inputs: bool = False) -> FlowReport:
        """What waits, for what, and what would be refused now; `inputs`: with what each room is computed from."""
        report, terms = self._held.report(now, inputs=inputs), self.terms
        return report._replace(objectives=terms.priorities, model_priorities=terms.by_model)

    @property
    def held(self) -> int:
        """Requests that wait."""
        return self._held.waiting

    def set_share(self, share: float) -> None:
        """The part of the endpoints' free slots that this replica may use."""
        self._held.share = share

    def shut_down(self) -> None:
        """Refuse the requests that are held, and those that arrive from now on."""
        self.pipeline.shut_down()

    def _run_held(self, now: float) -> None:
        self._held.run(now)
        self._parts.hook(DispatchRun(self.name, self._parts.clock.now() - now))

    # -- endpoints ---------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Begin a new stream of endpoints and wait for its first set."""
        if self._watching is not None:
            self._watching.cancel()
        self._applied.clear()
        self._watching = self._parts.tasks.run(f"discovery/{self.name}", self._follow)
        try:
            async with asyncio.timeout(FIRST_ENDPOINTS_SECONDS):
                await self._applied.wait()
        except TimeoutError:
            return

    async def _first_scrapes(self) -> None:
        """Wait until every endpoint was scraped once and has listed its models, or the time for it is over."""
        clock, custom = self._parts.clock, tables(self._config.engines)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.ext_proc.start_timeout):
                while self.readiness():  # noqa: ASYNC110  scrapes have no event that ends with the first of each
                    await asyncio.sleep(FIRST_SCRAPES_CHECK_SECONDS)
                async with asyncio.timeout(FIRST_MODELS_SECONDS):
                    while self._lacks_models(clock.now(), custom):  # noqa: ASYNC110  as above
                        await asyncio.sleep(FIRST_SCRAPES_CHECK_SECONDS)

    def _lacks_models(self, now: float, custom: Mapping[str, Engine]) -> bool:
        return any(lacks_models(view, custom) for view in self.store.snapshot(now).endpoints)

    async def _follow(self) -> None:
        async for endpoints in self._parts.endpoint_files.follow(self.name, self._discovery.watch()):
            if endpoints != self._known:
                await self._set_endpoints(endpoints)
            now = self._parts.clock.now()
            for name, each in endpoints.unresolved.items():
                self.store.failed(name, "unreachable", f"the name cannot be resolved: {each.reason}", now, 0.0)
            self._applied.set()

    async def _set_endpoints(self, found: EndpointSet) -> None:
        """Apply a set of endpoints to the routing state and the scrape loop: removals and changes at once, additions in
        steps, between which requests are picked."""
        before, self._known = self._known, None  # of a step that is cancelled nothing is known
        addresses, store = found.engines.keys(), self.store
        changed: list[str] = []
        added: list[str] = []
        for address in found.endpoints:
            if not store.has(address):
                added.append(address)
            elif differs(address, before, found):
                changed.append(address)
        store.change_endpoints(
            {name: each.engine for name, each in found.unresolved.items()}, self._parts.clock.now(), None, addresses
        )
        self._parts.scrape_loop.keep_targets(self.name, addresses)
        steps = [*changed, *added]
        for start in range(0, len(steps), ENDPOINTS_PER_STEP):
            if start:
                store.snapshot(self._parts.clock.now())  # with the views of one step: no reader makes all at once
                await asyncio.sleep(0)
            self._apply_step(found, steps[start : start + ENDPOINTS_PER_STEP])
        self._known = found
        self.endpoints = found.endpoints
        self._parts.on_endpoints()

    def _apply_step(self, found: EndpointSet, addresses: Sequence[str]) -> None:
        """Add or change these endpoints."""
        store = self.store
        engines = {address: found.endpoints[address].engine for address in addresses}
        identities = {address: identity_of(found, address) for address in addresses}
        store.change_endpoints(engines, self._parts.clock.now(), identities, store.addresses | engines.keys())
        targets = targets_of(self._config, self._settings, found, self._access, addresses)
        self._parts.scrape_loop.change_targets(self.name, targets, store)

    def _discovery_of(self, config: Config, settings: PoolConfig) -> Discovery:
        """The source of the pool's endpoints. Raises CannotStart where it cannot be used."""
        try:
            return discovery(settings, DiscoveryParts(config, self._parts.cluster, self._source_changed))
        except CannotDiscover as cannot:
            raise CannotStart(str(cannot)) from cannot

    def _source_changed(self, source: SourceStatus | None) -> None:
        """The status of the source has changed; None: the configuration lists the endpoints."""
        self._discovered = source
        if source is None:
            self.objectives, self._objectives_known, self._other_problems = NO_OBJECTIVES, False, {}
            self.terms.set_objects(NO_OBJECTIVES)
        self._publish_source()

    def set_objectives(self, objectives: PoolObjectives) -> None:
        """What the objects of the cluster say about requests to the pool."""
        self.objectives, self._objectives_known = objectives, True
        self.terms.set_objects(objectives)
        self._publish_source()

    def set_problems(self, found_by: str, problems: Sequence[ObjectProblem]) -> None:
        """What is wrong with the source of the endpoints beside what discovery reports."""
        if tuple(problems) != self._other_problems.get(found_by, ()):
            self._other_problems[found_by] = tuple(problems)
            self._publish_source()

    def _publish_source(self) -> None:
        """Report what has changed of the source: to the state, the log and the metrics, and to `on_source`."""
        source = self._discovered
        if source is not None:
            others = (problem for problems in self._other_problems.values() for problem in problems)
            objectives = self.objectives if self._objectives_known else None
            source = source._replace(problems=(*source.problems, *others), objectives=objectives)
        before = () if self.source is None else self.source.problems
        self.source = source
        self.store.set_source(source)
        if source is None:
            return
        self._parts.on_source(self.name, source.problems)
        reasons = {problem.reason for problem in before}
        for problem in source.problems:
            if problem not in before:
                again = problem.reason in reasons
                self._parts.hook(SourceProblemFound(self.name, problem.reason, problem.message, again))
        for reason in sorted(reasons - {problem.reason for problem in source.problems}):
            self._parts.hook(SourceProblemSolved(self.name, reason))

    def _empty_cache(self, address: str, reason: str, now: float) -> None:
        """A request has emptied the cache of an endpoint: only the picker that it passed through knows."""
        self.store.cache_emptied(address, reason, now)
        self._sharing.emptied(address, reason)

    def _unlisted(self, model: str, now: float) -> None:
        """No server lists the model of a request: it may have been loaded since the lists were fetched."""
        if model not in self._settings.models:
            at = self._model_refresh.due(now, len(self.endpoints))
            if at is not None:
                self._parts.scrape_loop.refresh_models(self.name, at)

    def _observe(self, event: Event) -> None:
        """Events of the routing state. An endpoint that is down or blind may have been replaced under the same name."""
        self._parts.hook(event)
        if type(event) is HealthChanged and event.new in (Health.DOWN, Health.BLIND):
            self._discovery.refresh()


def unscraped(snapshot: Snapshot) -> int:
    """Endpoints of which no scrape has ended yet, with whatever result."""
    return sum(
        view.health is Health.UNKNOWN and view.page_at is None and view.failures == 0 for view in snapshot.endpoints
    )


def lacks_models(view: EndpointView, custom: Mapping[str, Engine]) -> bool:
    """Whether a list of models is expected of a server whose page was read, and has not arrived."""
    if view.page_at is None or view.engine == AUTO or view.reading(MODELS) is not None:
        return False
    return (custom.get(view.engine) or table_of(view.engine)).models_path is not None


def rate_limits(rate: PrefillRateConfig) -> RateLimits:
    """The bounds of the learnt prefill rate."""
    return RateLimits(rate.fixed, rate.default, rate.low, rate.high)


def outlier_limits(limits: OutlierDetectionConfig) -> OutlierLimits:
    """When an endpoint is ejected."""
    return OutlierLimits(
        limits.enabled,
        limits.consecutive_failures,
        limits.failure_ratio,
        limits.min_requests,
        limits.base_ejection_time,
        limits.max_ejection_time,
        limits.max_ejection_percent / 100,
    )


def access_of(settings: PoolConfig) -> ServerAccess:
    """How the pool's servers are reached: scheme, certificates, token."""
    tls = settings.scrape
    return ServerAccess(
        HttpClientConfig(
            https=tls.scheme == "https",
            ca_file=tls.ca_file,
            cert_file=tls.cert_file,
            key_file=tls.key_file,
            token_file=tls.token_file,
            server_name=tls.server_name,
            insecure_skip_verify=tls.insecure_skip_verify,
        )
    )


def profile_of(config: Config, settings: PoolConfig) -> Profile:
    """The profile that a pool names. Raises CannotStart."""
    try:
        return build(config.profiles[settings.profile])
    except BadProfile as bad:
        raise CannotStart(str(bad)) from bad


def inference_pool_of(settings: PoolConfig, config: Config) -> tuple[str, str]:
    """Namespace and name of the pool's InferencePool, as configured."""
    return settings.namespace or config.kubernetes.namespace, settings.inference_pool


def identity_of(found: EndpointSet, address: str) -> Identity:
    """The pod and the node behind an endpoint's address, as far as they are known."""
    endpoint = found.endpoints[address]
    return Identity(endpoint.pod, endpoint.node, found.uids.get(address, ""))


def differs(address: str, before: EndpointSet | None, found: EndpointSet) -> bool:
    """Whether the endpoint at the address is another one than before, or is described otherwise."""
    if before is None:
        return True
    return (
        before.endpoints.get(address) != found.endpoints[address]
        or before.uids.get(address) != found.uids.get(address)
        or before.names.get(address) != found.names.get(address)
    )


def targets_of(
    config: Config, settings: PoolConfig, found: EndpointSet, access: ServerAccess, addresses: Iterable[str]
) -> list[Target]:
    """What the scrape loop scrapes of a pool's endpoints at these addresses, and how."""
    scrape, own = config.scrape, settings.scrape
    custom = tables(config.engines)
    return [
        Target(
            address,
            endpoint.engine,
            path=own.metrics_path or scrape.path or _page_path(endpoint.engine, custom),
            interval=scrape.interval,
            timeout=scrape.timeout,
            max_page_bytes=scrape.max_page_bytes,
            models_interval=scrape.models_interval,
            table=custom.get(endpoint.engine),
            histograms=scrape.histograms,
            health_interval=scrape.health_interval,
            health_path=own.health_path,
            access=access,
            name=found.names.get(address, ""),
            metrics_port=own.metrics_port,
            health_port=own.health_port,
            identity=identity_of(found, address),
        )
        for address, endpoint in ((address, found.endpoints[address]) for address in addresses)
    ]


def _page_path(engine: str, custom: Mapping[str, Engine]) -> str:
    """The path of the engine's page; `/metrics` while the engine is unknown."""
    if engine == AUTO:
        return DEFAULT_PAGE_PATH
    return (custom.get(engine) or table_of(engine)).page_path
