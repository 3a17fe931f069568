"""The demo in virtual time: the same workload, emulated engines and picker, without sockets, clock and randomness.

It shows that the results of the demo follow from the workload and not from the machine.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import cycle
from statistics import quantiles
from typing import NamedTuple

import orjson

from agent.app.endpoint_files import EndpointFiles
from agent.app.pool import Pool, PoolParts
from agent.app.tasks import Tasks
from agent.app.vocabulary import VOCABULARY
from agent.config import from_flags
from agent.demo.workload import ChatTurn
from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import Finished, FirstToken, JobSpec
from agent.emulator.metrics import PageWriter
from agent.emulator.text import block_hashes, chat_tokens
from agent.engines import engine
from agent.engines.mapping import Extractor
from agent.events import ignore
from agent.kube.cluster import Cluster
from agent.pick.decision import Pick
from agent.requests.ticket import Request, Ticket
from agent.scrape.loop import ScrapeLoop
from tests.fakes.clock import ManualClock

ROUND_ROBIN = "round robin"
CHAT = "/v1/chat/completions"


class VirtualResult(NamedTuple):
    """The result of one way to pick: seconds to first token of each request, the servers' token counts, the picks."""

    ttft: list[float]
    hit_tokens: int
    prompt_tokens: int
    served: list[int]
    left_warmest: int
    predicted_tokens: int
    ended_at: float

    @property
    def hit_ratio(self) -> float:
        return self.hit_tokens / self.prompt_tokens

    def percentile(self, percent: int) -> float:
        return quantiles(self.ttft, n=100)[percent - 1]


def run(
    turns: Sequence[ChatTurn],
    profile: str,
    config: EmulatorConfig,
    answer_tokens: int,
    servers: int = 4,
    interval: float = 0.2,
) -> VirtualResult:
    """Send the turns at their times to `servers` servers with empty caches."""
    addresses = [f"127.0.0.1:{8001 + number}" for number in range(servers)]
    clock = ManualClock()
    chosen = "least-cost" if profile == ROUND_ROBIN else profile
    agent_config = from_flags(addresses, vocabulary=VOCABULARY, profile=chosen)
    agent_config = replace(agent_config, flow_control=replace(agent_config.flow_control, enabled=False))
    picks: list[Pick] = []
    remember = lambda _, pick, __: picks.append(pick)
    parts = PoolParts(
        clock,
        ignore,
        Tasks(clock, ignore),
        ScrapeLoop(clock),
        remember,
        lambda: None,
        EndpointFiles(agent_config, clock, ignore),
        Cluster("", clock),
        lambda *_: None,
    )
    pool = Pool(agent_config, agent_config.pools[0], parts)
    pool.store.set_endpoints(dict.fromkeys(addresses, "vllm"), 0.0)
    fleet = {address: EngineSimulation(config, 0.0) for address in addresses}
    pages = {address: PageWriter(config, "m", now=0.0, wall=1.0) for address in addresses}
    readers = {address: Extractor(engine("vllm")) for address in addresses}
    rotation = cycle(addresses)

    started: dict[tuple[str, int], float] = {}
    picked: dict[tuple[str, int], Ticket] = {}
    ttft: list[float] = []
    hit_tokens = 0
    events: list[tuple[float, int, ChatTurn | None]] = [(turn.at, 1, turn) for turn in turns]
    heapq.heapify(events)
    heapq.heappush(events, (0.0, 0, None))  # a scrape
    left = len(turns)

    def settle(now: float) -> None:
        nonlocal left, hit_tokens
        for address, server in fleet.items():
            for event in server.advance(now):
                key = (address, event.id)
                if isinstance(event, FirstToken):
                    ttft.append(event.at - started[key])
                    hit_tokens += event.cached_tokens
                elif isinstance(event, Finished):
                    left -= 1
                    if key in picked:
                        picked.pop(key).end("closed")

    while left:
        at = min([events[0][0] if events else float("inf"), *_next_events(fleet.values())])
        clock.advance(at - clock.now())
        settle(at)
        while events and events[0][0] <= at:
            _, _, turn = heapq.heappop(events)
            if turn is None:
                for address, server in fleet.items():
                    page = pages[address].page(server, at)
                    pool.store.observed(address, readers[address].extract(page), at, 0.0, len(page))
                heapq.heappush(events, (at + interval, 0, None))
                continue
            ticket = None
            if profile == ROUND_ROBIN:
                address = next(rotation)
            else:
                ticket = pool.submit(Request("r", CHAT, _body(turn)), lambda _, __: None)
                assert ticket.pick is not None
                address = ticket.pick.endpoint
            tokens = chat_tokens([(message.role, message.content) for message in turn.messages])
            hashes = block_hashes(tokens, config.block_size)
            number = fleet[address].submit(at, JobSpec(len(tokens), answer_tokens, hashes, stream=True))
            started[address, number] = at
            if ticket is not None:
                picked[address, number] = ticket
    served = [sum(1 for where, _ in started if where == address) for address in addresses]
    return VirtualResult(
        ttft,
        hit_tokens,
        sum(len(chat_tokens([(m.role, m.content) for m in turn.messages])) for turn in turns),
        served,
        sum(pick.left_warmest for pick in picks),
        sum(pick.hit_tokens for pick in picks),
        clock.now(),
    )


def _next_events(fleet: Iterable[EngineSimulation]) -> list[float]:
    return [at for server in fleet if (at := server.next_event_at()) is not None]


def _body(turn: ChatTurn) -> bytes:
    return orjson.dumps({"model": "m", "messages": [message._asdict() for message in turn.messages]})
