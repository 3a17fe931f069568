"""Emulated servers and one agent before them, in simulated time: requests of the agent and requests of others.

The agent is a routing store, a prefix index and a profile, as one picker port uses them. It can be restarted: a new one
knows nothing, and what its servers run goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import Finished, FirstToken, JobSpec
from agent.emulator.metrics import PageWriter
from agent.engines import engine as engine_table
from agent.engines.mapping import Extractor
from agent.pick.decision import Pick
from agent.pick.picker import pick
from agent.pick.profile import build
from agent.pick.request import PickRequest
from agent.prefix.index import PrefixIndex
from agent.profiles import PRESETS
from agent.state.snapshot import Work
from agent.state.store import RoutingStore

PAGE_SECONDS = 0.005


class _OwnRequest(NamedTuple):
    """A request of the agent: its store, the id of its accounting, and when it was sent."""

    store: RoutingStore
    work_id: int
    sent_at: float


class SimulatedFleet:
    """Servers of one configuration, named `server-1:8000` and so on, scraped every `interval` seconds.

    `change` is applied to each page before the agent reads it.
    """

    def __init__(
        self,
        config: EmulatorConfig,
        servers: int = 2,
        *,
        interval: float = 1.0,
        profile: str = "least-cost",
        change: Callable[[bytes], bytes] = lambda page: page,
    ) -> None:
        self.now = 0.0
        self.first_token_seconds: list[float] = []
        self._interval = interval
        self._change = change
        self._profile = build(PRESETS[profile])
        self._engines = {f"server-{number + 1}:8000": EngineSimulation(config) for number in range(servers)}
        self._writers = {address: PageWriter(config, "m") for address in self._engines}
        self._extract = Extractor(engine_table("vllm")).extract
        self._own: dict[tuple[str, int], _OwnRequest] = {}
        self._requests = 0
        self.restart()

    def restart(self) -> None:
        """Replace the agent by a new one, which scrapes every server first."""
        self.index = PrefixIndex()
        self.store = RoutingStore("pool", stale_after=5 * self._interval, prefix=self.index)
        self.store.set_endpoints(dict.fromkeys(self._engines, "vllm"), self.now)
        # One after the other, so that no page is requested while another one is read.
        self._due = {address: self.now + 2 * PAGE_SECONDS * place for place, address in enumerate(self._engines)}
        self.advance(2 * PAGE_SECONDS * len(self._engines))

    def advance(self, seconds: float) -> None:
        """Let time pass: servers work, and are scraped when due."""
        until = self.now + seconds
        while True:
            at, address = min((at, address) for address, at in self._due.items())
            if at + PAGE_SECONDS > until:
                break
            self._settle(at)
            page = self._change(self._writers[address].page(self._engines[address], at))
            self._settle(at + PAGE_SECONDS)
            self.store.observed(address, self._extract(page), at, PAGE_SECONDS, len(page))
            self._due[address] = at + self._interval
        self._settle(until)

    def send_past(self, address: str, requests: int, answer_tokens: int, prompt_tokens: int = 128) -> None:
        """Send requests to a server past the agent."""
        for _ in range(requests):
            self._engines[address].submit(self.now, JobSpec(prompt_tokens, answer_tokens))

    def send(self, answer_tokens: int = 4, prompt_tokens: int = 115, only: Iterable[str] | None = None) -> str:
        """Send one request through the agent; returns the address that it picked."""
        self._requests += 1
        subset = None if only is None else frozenset(only)
        request = PickRequest(f"request {self._requests}", "m", prompt_tokens, subset=subset)
        found = pick(self.store.snapshot(self.now), request, self._profile, self.index, self.now)
        assert isinstance(found, Pick), found
        work_id = self.store.started(found.endpoint, found.uncached_tokens, found.hit_tokens, self.now)
        job = self._engines[found.endpoint].submit(self.now, JobSpec(prompt_tokens, answer_tokens))
        self._own[found.endpoint, job] = _OwnRequest(self.store, work_id, self.now)
        return found.endpoint

    def burst(self, requests: int, gap: float, prompt_tokens: int = 115) -> dict[str, int]:
        """Send short requests, `gap` seconds apart: the number that each server got."""
        sent = dict.fromkeys(self._engines, 0)
        for _ in range(requests):
            sent[self.send(prompt_tokens=prompt_tokens)] += 1
            if gap:
                self.advance(gap)
        return sent

    def work(self, address: str) -> Work:
        """The work at a server as the agent sees it."""
        views = {view.address: view for view in self.store.snapshot(self.now).endpoints}
        return views[address].work

    def _settle(self, now: float) -> None:
        for address, engine in self._engines.items():
            for event in engine.advance(now):
                own = self._own.get((address, event.id))
                if own is None:
                    continue
                if isinstance(event, FirstToken):
                    self.first_token_seconds.append(event.at - own.sent_at)
                elif isinstance(event, Finished):
                    del self._own[address, event.id]
                    own.store.ended(own.work_id, max(event.at, self.now))
        self.now = now
