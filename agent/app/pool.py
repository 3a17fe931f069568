"""One pool at work: its store, its index of prefixes, its profile; what its picker port asks, it answers here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from agent.clock import Clock
from agent.config import Config, Endpoint, Pool, PrefillRate
from agent.engine_specs import AUTO
from agent.engines import engine as table_of
from agent.engines.custom import tables
from agent.engines.report import ReportRefused, read
from agent.engines.table import DEFAULT_PAGE_PATH, Engine
from agent.events import Hook
from agent.events.requests import Ended, Picked, Reported
from agent.pick.picker import pick
from agent.pick.profile import Profile, build
from agent.pick.request import NoPick, Pick, PickRequest, Prompt
from agent.prefix.blocks import chain, seed
from agent.prefix.index import PrefixIndex
from agent.profiles import ProfileSpec
from agent.scrape.loop import Target
from agent.scrape.reach import Reach, ReachSettings
from agent.serve.admin.server import untried
from agent.state.endpoint import Identity
from agent.state.inflight import TRANSIT_SECONDS
from agent.state.rate import RateLimits
from agent.state.store import RoutingStore


class _Running(NamedTuple):
    """A pick whose request is not over: the pick itself is kept, so that its identity stays its own."""

    pick: Pick
    ticket: int
    model: str
    started: float


class _FixedSize:
    """What the store is given in place of an index that may not follow the cache sizes that servers report."""

    def __init__(self, index: PrefixIndex) -> None:
        self.forget = index.forget

    def resize(self, address: str, capacity_blocks: int) -> None:
        """Nothing: every endpoint keeps the configured capacity."""


class PoolAtWork:
    """A pool's parts, and the answers to its picker port (`agent.serve.ext_proc.server.PoolPort`)."""

    def __init__(
        self, config: Config, pool: Pool, clock: Clock, hook: Hook, remember: Callable[[str, Pick, float], None]
    ) -> None:
        self.name = pool.name
        self.settings = pool
        index = config.prefix_index
        self.index = PrefixIndex(index.capacity_blocks, index.most_blocks)
        self.store = RoutingStore(
            pool.name,
            stale_after=config.state.stale_after,
            rate=limits(config.prefill_rate),
            hook=hook,
            prefix=self.index if index.auto_size else _FixedSize(self.index),
            index_block_tokens=index.block_tokens,
        )
        self.profile = profile_of(config, pool)
        self.reach = reach_of(pool)
        self._clock = clock
        self._hook = hook
        self._remember = remember
        self._block_tokens = index.block_tokens
        self._bytes_per_token = index.bytes_per_token
        self._block_bytes = index.block_tokens * index.bytes_per_token
        self._fallbacks = config.ext_proc.fallbacks
        self._max_blocks = index.max_tokens // index.block_tokens
        self._running: dict[int, _Running] = {}
        self._tables = tables(config.engines)
        self._tried_all = False

    # -- what the picker port asks -----------------------------------------------------------------------------------

    def pick(self, request_id: str, prompt: Prompt, subset: frozenset[str] | None) -> Pick | NoPick:
        """An endpoint for this request, counted as in flight from now on, or the reason for none."""
        clock = self._clock
        began = clock.now()
        text = prompt.text
        # A whole text is only counted, its beginning is compared: tokens are estimated from bytes, as nobody has the
        # tokenizer of every model at hand.
        tokens = -(-len(text) // self._bytes_per_token)
        hashes = chain(text, self._block_bytes, seed(prompt.model, prompt.salt), self._max_blocks)
        request = PickRequest(request_id, prompt.model, tokens, hashes, self._block_tokens, subset)
        store = self.store
        answer = pick(store.snapshot(began), request, self.profile, self.index, began, self._fallbacks)
        if isinstance(answer, NoPick):
            return answer
        ticket = store.started(answer.endpoint, answer.uncached_tokens, answer.hit_tokens, began)
        if hashes:
            self.index.record(answer.endpoint, hashes)
        self._running[id(answer)] = _Running(answer, ticket, prompt.model, began)
        self._remember(self.name, answer, began)
        self._hook(
            Picked(
                self.name,
                self.profile.name,
                prompt.model,
                answer.endpoint,
                tokens,
                answer.hit_tokens,
                answer.left_warmest,
                clock.now() - began,
            )
        )
        return answer

    @property
    def reports(self) -> bool:
        """Whether model servers are to be asked for a load report with each answer."""
        return self.settings.orca

    def reported(self, pick: Pick, report: str, served: str) -> None:
        """A load report came with the answer to a pick that is not over, from `served` (empty: nobody told whom)."""
        running = self._running[id(pick)]
        now = self._clock.now()
        reason = ""
        if served != pick.endpoint:
            reason = "another_server" if served else "unattributed"
        else:
            engine = self.store.engine(served)
            table = None if engine in {"", AUTO} else self._tables.get(engine) or table_of(engine)
            try:
                values = read(report, table.reports if table is not None else {})
            except ReportRefused as refused:
                reason = refused.reason
            else:
                # It was written before it came here, by no more than what a request is taken to need for its way.
                self.store.reported(running.ticket, values, now - TRANSIT_SECONDS, now)
        self._hook(Reported(self.name, pick.endpoint, reason))

    def ended(self, pick: Pick, how: str) -> None:
        """A pick is over; called exactly once for each. KeyError for one that is not running."""
        running = self._running.pop(id(pick))
        now = self._clock.now()
        self.store.ended(running.ticket, now)
        self._hook(Ended(self.name, running.model, pick.endpoint, now - running.started, how))

    def ready(self) -> bool:
        """True once every endpoint was asked, whatever came of it: from then on an answer rests on knowledge."""
        if not self._tried_all:
            self._tried_all = not untried(self.store.snapshot(self._clock.now()))
        return self._tried_all

    @property
    def in_flight(self) -> int:
        """Requests that were picked for and are not over."""
        return len(self._running)

    # -- what a changed configuration tells --------------------------------------------------------------------------

    def change(self, config: Config, pool: Pool, profile: Profile) -> None:
        """From now on these limits and this profile hold; streams that run go on."""
        if pool.reach != self.settings.reach:
            self.reach = reach_of(pool)
        self.settings = pool
        self.profile = profile
        self._tables = tables(config.engines)
        self.store.set_limits(
            stale_after=config.state.stale_after, rate=limits(config.prefill_rate), now=self._clock.now()
        )


def limits(rate: PrefillRate) -> RateLimits:
    """The bounds of the learnt prefill rate, as the state wants them."""
    return RateLimits(rate.fixed, rate.default, rate.low, rate.high)


def reach_of(pool: Pool) -> Reach:
    """The way to the pool's servers, as the scrape loop wants it."""
    said = pool.reach
    return Reach(
        ReachSettings(
            https=said.scheme == "https",
            ca_file=said.ca_file,
            cert_file=said.cert_file,
            key_file=said.key_file,
            token_file=said.token_file,
            server_name=said.server_name,
            insecure_skip_verify=said.insecure_skip_verify,
        )
    )


def profile_of(config: Config, pool: Pool) -> Profile:
    """The profile that a pool names, ready to pick."""
    spec: ProfileSpec = config.profiles[pool.profile]
    return build(spec)


def identity(endpoint: Endpoint) -> Identity:
    """Who serves at an endpoint's address, as far as the configuration says."""
    return Identity(endpoint.pod, endpoint.node)


def targets(
    config: Config, pool: Pool, endpoints: Mapping[str, Endpoint], reach: Reach, names: Mapping[str, str]
) -> list[Target]:
    """What the scrape loop is to ask of a pool's endpoints, by address, and how; `names` has the host's name of each
    address that has one."""
    scrape = config.scrape
    told = tables(config.engines)
    return [
        Target(
            address,
            endpoint.engine,
            path=pool.reach.metrics_path or scrape.path or _page_path(endpoint.engine, told),
            interval=scrape.interval,
            timeout=scrape.timeout,
            max_page_bytes=scrape.max_page_bytes,
            models_interval=scrape.models_interval,
            table=told.get(endpoint.engine),
            histograms=scrape.histograms,
            health_interval=scrape.health_interval,
            health_path=pool.reach.health_path,
            reach=reach,
            name=names.get(address, ""),
            metrics_port=pool.reach.metrics_port,
            health_port=pool.reach.health_port,
            identity=identity(endpoint),
        )
        for address, endpoint in endpoints.items()
    ]


def _page_path(engine: str, told: Mapping[str, Engine]) -> str:
    """Where the engine has its page, or where most have it."""
    if engine == AUTO:
        return DEFAULT_PAGE_PATH
    return (told.get(engine) or table_of(engine)).page_path
