"""The demo from its start to its table: start a fleet, run the workload with each way to pick, say what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp

from agent.clock import Clock
from agent.demo import client
from agent.demo.fleet import EMULATED, HOST, MODEL, SCRAPE_INTERVAL_SECONDS, SERVERS, CannotStart, Fleet, Ports
from agent.demo.report import UNKNOWN, Figures, gauges, notes, pool_gauges, table, withheld
from agent.demo.screen import Screen
from agent.demo.workload import MIN_PROMPT_TOKENS, Shape, Turn, best_hit_ratio, plan
from agent.engines import engine
from agent.engines.mapping import Extractor
from agent.exposition.page import PageRefused
from agent.signals import FINISHED, PREFIX_HITS, PREFIX_QUERIES

ROUND_ROBIN: Final = "round robin"
ENGINE: Final = "vllm"
# Prompts for servers of which nothing is known; more where they say that they take more.
REAL_PROMPT_TOKENS: Final = 1500
REAL_RATE: Final = 4.0
# How often the agent is asked while a run goes on: rarely, as it costs the agent something, and not in step with its
# scrapes, or every age would be the same.
_LOOK_SECONDS: Final = 0.87
_COUNTED_SECONDS: Final = 3.0  # how long after the last answer a server's counters may lag
_SAMPLE_TEXT: Final = "The quick brown fox jumps over the lazy dog, and 17 others look on. " * 8


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for on the command line; None: as fits the servers."""

    profiles: tuple[str, ...]
    ports: Ports
    endpoints: tuple[str, ...] = ()
    model: str | None = None
    rate: float | None = None
    seconds: float | None = None
    prompt_tokens: int | None = None
    seed: int = 1
    once: bool = False


class _Work(NamedTuple):
    """What is sent: to which model, in which shape."""

    model: str
    shape: Shape


async def show(wish: Wish, screen: Screen, clock: Clock, told: asyncio.Event) -> int | None:
    """Run the demo until it is `told` to stop: 0 when every request was answered, 1 if not, None if it got no table.

    Raises CannotStart. Nothing that it started is left behind, whichever way it ends.
    """
    began = clock.now()
    wish.ports.check(with_servers=not wish.endpoints)
    endpoints = await asyncio.gather(*(_by_number(address) for address in wish.endpoints))
    for named, address in zip(wish.endpoints, endpoints, strict=True):
        if endpoints.count(address) > 1:
            raise CannotStart(f"--endpoints: {named} is {address}, which stands there twice; keep one")
    async with _fleet(wish.ports, endpoints) as fleet:
        failed = await _unless_told(told, _to_the_table(fleet, wish, screen, clock))
        if failed is None:
            screen.say("Stopping before the end.")
            return None
        if not wish.once:
            screen.say()
            screen.say(f"The table took {clock.now() - began:.0f} s. Everything keeps running until Ctrl-C.")
            await _unless_told(told, _serve(fleet, screen))
            screen.say("Stopping.")
    return 1 if failed else 0


async def _unless_told(told: asyncio.Event, work: Coroutine[None, None, int]) -> int | None:
    """What the work returns, or None when somebody says stop before it does; it is over in any case."""
    task, stop = asyncio.create_task(work), asyncio.create_task(told.wait())
    try:
        await asyncio.wait((task, stop), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        stop.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _to_the_table(fleet: Fleet, wish: Wish, screen: Screen, clock: Clock) -> int:
    """All runs and what came of them; how many requests failed."""
    work = await _begin(fleet, wish, screen)
    turns = plan(work.shape)
    _tell_workload(screen, work.shape, turns)
    runs = []
    peaks: dict[str, float] = {}
    for name in (ROUND_ROBIN, *wish.profiles):
        figures, peaks = await _run(fleet, name, work, wish, screen, clock)
        runs.append(figures)
    screen.title(f"What came of it, {len(turns)} chats each time")
    screen.table(("", *(run.name for run in runs)), table(runs))
    for note in notes(runs, best_hit_ratio(turns)):
        screen.say(f"  {note}")
    screen.title(f"What an autoscaler reads now ({fleet.admin}/v1/gauges; the same on /metrics)")
    now = gauges(await fleet.json(f"{fleet.admin}/v1/gauges"))
    screen.table(("gauge", "highest in the last run", "now", "age"), pool_gauges(now, peaks))
    screen.say(f"  {withheld(now)}")
    _tell_addresses(screen, fleet, wish, work.model)
    return sum(run.failed for run in runs)


@contextlib.asynccontextmanager
async def _fleet(ports: Ports, endpoints: Sequence[str]) -> AsyncIterator[Fleet]:
    """A fleet of which nothing is left afterwards."""
    timeout = aiohttp.ClientTimeout(total=client.PATIENCE_SECONDS)
    with tempfile.TemporaryDirectory(prefix="igw-demo-", ignore_cleanup_errors=True) as folder:
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            fleet = Fleet(ports, Path(folder), session, endpoints)
            try:
                yield fleet
            finally:
                await fleet.stop()


async def _begin(fleet: Fleet, wish: Wish, screen: Screen) -> _Work:
    """Start what is needed before the first run, and settle what to send."""
    if fleet.own:
        screen.say(
            f"Starting {SERVERS} emulated model servers: each reads {EMULATED.prefill_tokens_per_second:,.0f} prompt "
            f"tokens a second and caches {EMULATED.capacity * EMULATED.block_size:,} of them."
        )
        await fleet.start_servers()
        work = _Work(MODEL, _wished(Shape(), wish))
    else:
        screen.say(f"Asking {len(fleet.endpoints)} model servers what they serve.")
        work = await _real_work(fleet, wish, screen)
    screen.say("Starting Envoy, with one listener that picks round robin and one that asks the agent.")
    await fleet.start_envoy()
    return work


def _wished(shape: Shape, wish: Wish) -> Shape:
    shape = replace(
        shape,
        rate=shape.rate if wish.rate is None else wish.rate,
        seconds=shape.seconds if wish.seconds is None else wish.seconds,
        seed=wish.seed,
    )
    if wish.prompt_tokens is None:
        return shape
    try:
        return shape.within(wish.prompt_tokens)
    except ValueError as short:
        raise CannotStart(f"--prompt-tokens: {short}") from short


async def _real_work(fleet: Fleet, wish: Wish, screen: Screen) -> _Work:
    """What real servers can be asked: their model, and prompts that fit it by its own count of tokens."""
    address = fleet.endpoints[0]
    listed = await fleet.json(f"http://{address}/v1/models")
    models = models_of(listed)
    name = wish.model or next(iter(models), None)
    if name is None:
        raise CannotStart(f"http://{address}/v1/models lists no model; write --model NAME")
    shape = Shape(rate=REAL_RATE)
    try:
        counted = await fleet.json(f"http://{address}/tokenize", {"model": name, "prompt": _SAMPLE_TEXT})
        shape = replace(shape, bytes_per_token=len(_SAMPLE_TEXT) / counted["count"])
        fleet.bytes_per_token = max(1, round(shape.bytes_per_token))
    except (CannotStart, KeyError, TypeError, ZeroDivisionError):
        shape = replace(shape, bytes_per_token=3.0)
        screen.say("  They have no /tokenize: 3 bytes are taken for a token, so prompts may be shorter than allowed.")
    most = models.get(name)
    fits = REAL_PROMPT_TOKENS if most is None else int(most * 0.9) - shape.answer_tokens
    shape = _wished(shape, replace(wish, prompt_tokens=wish.prompt_tokens or max(MIN_PROMPT_TOKENS, fits)))
    screen.say(
        f"  Model {name}, prompts of up to {shape.prompt_tokens:,} tokens. These servers are not restarted, so each "
        "run has words of its own in its prompts, and begins with nothing of them in any cache."
    )
    return _Work(name, shape)


def models_of(listed: Any) -> dict[str, int | None]:
    """The models that a server lists, each with the tokens that it takes where that is told."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    models: dict[str, int | None] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(name := row.get("id"), str) and name:
            most = row.get("max_model_len")
            models[name] = most if isinstance(most, int) else None
    return models


async def _run(
    fleet: Fleet, name: str, work: _Work, wish: Wish, screen: Screen, clock: Clock
) -> tuple[Figures, dict[str, float]]:
    """One run of the workload; its figures, and the highest values of the gauges during it."""
    picks = name != ROUND_ROBIN
    salt = ""
    if fleet.own:
        await fleet.forget_prefixes()
    else:
        salt = f"{os.urandom(6).hex()} "
    await fleet.start_agent(name if picks else wish.profiles[0])
    turns = plan(work.shape, salt)
    how = f"asking the agent, profile {name}" if picks else "round robin, the agent only watching"
    screen.say(f"Sending {len(turns)} chats through Envoy, {how}; caches are cold.")
    before = _counters(await fleet.pages())
    cpu = fleet.agent_cpu_seconds()
    port = fleet.ports.picker if picks else fleet.ports.round_robin
    ages: list[float] = []
    peaks: dict[str, float] = {}
    busy: list[float] = []
    watcher = asyncio.create_task(_watch(fleet, ages, busy, peaks))
    try:
        with screen.run(name, len(turns)) as moved:
            progress = await _send(port, turns, work, clock, moved)
    finally:
        watcher.cancel()
        await asyncio.wait({watcher})
        unanswered = None if watcher.cancelled() else watcher.exception()
    spent = _difference(fleet.agent_cpu_seconds(), cpu)
    fleet.check()
    if unanswered is not None:
        raise unanswered
    counted = await _counted(fleet, before, progress.sent - sum(progress.errors.values()))
    own = (await fleet.agent_page()).decode()
    figures = Figures(
        name,
        progress.sent,
        progress.ttft_seconds,
        dict(progress.errors),
        {address: signals.get(FINISHED) for address, signals in counted.items()},
        _sum(counted, PREFIX_QUERIES),
        _sum(counted, PREFIX_HITS),
        total(own, "igw_pick_predicted_hit_tokens_total") if picks else None,
        total(own, "igw_picks_left_warmest_total") if picks else None,
        spent,
        ages,
        progress.late_seconds,
        busy,
    )
    return figures, peaks


async def _send(
    port: int, turns: Sequence[Turn], work: _Work, clock: Clock, moved: Callable[[client.Progress], None]
) -> client.Progress:
    timeout = aiohttp.ClientTimeout(total=client.PATIENCE_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        url = f"http://{HOST}:{port}{client.PATH}"
        return await client.send(session, url, turns, work.model, work.shape.answer_tokens, clock, moved)


async def _watch(fleet: Fleet, ages: list[float], busy: list[float], peaks: dict[str, float]) -> None:
    """Ask the agent for its gauges from time to time: how old its pages are, how busy what runs under the servers is,
    how high each gauge came."""
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        for gauge in gauges(await fleet.json(f"{fleet.admin}/v1/gauges")):
            if gauge.value is None:
                continue
            if gauge.name == "igw_endpoint_page_age_seconds":
                ages.append(gauge.value)
            if gauge.name == "igw_endpoint_accelerator_utilization_ratio":
                busy.append(gauge.value)
            peaks[gauge.name] = max(gauge.value, peaks.get(gauge.name, gauge.value))


def _counters(pages: Mapping[str, bytes]) -> dict[str, dict[str, float]]:
    """Address -> signal -> number, of every page that is one."""
    found: dict[str, dict[str, float]] = {}
    for address, page in pages.items():
        try:
            readings = Extractor(engine(ENGINE)).extract(page).readings
        except PageRefused as refused:
            raise CannotStart(f"{address} has no page of {ENGINE}: {refused}") from refused
        found[address] = {name: value for name, value in readings.items() if isinstance(value, float)}
    return found


async def _counted(
    fleet: Fleet, before: Mapping[str, Mapping[str, float]], answered: int
) -> dict[str, dict[str, float]]:
    """What every server counted since `before`, once they have counted all that was answered."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _COUNTED_SECONDS
    while True:
        now = _counters(await fleet.pages())
        grown = {
            address: {name: value - before[address][name] for name, value in signals.items() if name in before[address]}
            for address, signals in now.items()
        }
        if (_sum(grown, FINISHED) or 0) >= answered or loop.time() > deadline:
            return grown
        await asyncio.sleep(0.1)


def _sum(counted: Mapping[str, Mapping[str, float]], signal: str) -> float | None:
    """The sum over the servers; None where one of them does not say."""
    values = [signals.get(signal) for signals in counted.values()]
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def total(page: str, name: str) -> float:
    """The sum of a counter's series on the agent's own page; 0 where it has counted nothing yet."""
    beginnings = (f"{name}{{", f"{name} ")
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(beginnings))


async def _by_number(address: str) -> str:
    """The address with the IP address in the place of a name, as Envoy wants it. Raises CannotStart."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise CannotStart(f"--endpoints: {address!r} is no address; write HOST:PORT")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return address
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise CannotStart(f"--endpoints: {host} has no address: {error.strerror}") from error
    ip = min(found, key=lambda row: row[0] != socket.AF_INET)[4][0]
    return f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}"


async def _serve(fleet: Fleet, screen: Screen) -> int:
    """Until cancelled. Raises CannotStart when the agent or Envoy ends; a model server that ends is only told of."""
    ended: set[str] = set()
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        fleet.check(servers=False)
        for name in fleet.ended_servers():
            if name not in ended:
                ended.add(name)
                screen.say(f"{name} has ended; {fleet.admin}/v1/state says what the agent makes of it.")


def _tell_workload(screen: Screen, shape: Shape, turns: Sequence[Turn]) -> None:
    tokens = sum(turn.prompt_tokens for turn in turns) / max(1, len(turns))
    hottest = sum(turn.tenant == 0 for turn in turns) / max(1, len(turns))
    screen.say(
        f"The workload: {shape.rate:g} chats a second for {shape.seconds:g} s, {tokens:,.0f} prompt tokens each on "
        f"average; {shape.tenants} tenants with a system prompt of {shape.system_tokens:,} tokens, {hottest:.0%} of "
        f"the chats from one of them; up to {shape.turns} turns a conversation."
    )


def _tell_addresses(screen: Screen, fleet: Fleet, wish: Wish, model: str) -> None:
    ports = fleet.ports
    screen.title("Where to look")
    asked = f"http://{HOST}:{ports.picker}"
    rows = [
        (f"{asked}/v1", f"Envoy, asking the agent (profile {wish.profiles[-1]})"),
        (f"http://{HOST}:{ports.round_robin}/v1", "Envoy, round robin"),
        (f"{fleet.admin}/v1/state", "every endpoint and signal, with ages; /v1/state/watch follows it"),
        (f"{fleet.admin}/v1/picks", "the last picks, with the scores that decided them"),
        (f"{fleet.admin}/v1/gauges", "what an autoscaler could read, or why not"),
        (f"{fleet.admin}/metrics", "for Prometheus"),
        (f"http://{HOST}:{ports.envoy_admin}", "Envoy's own admin pages"),
        *((f"http://{address}/metrics", f"model server {number}") for number, address in enumerate(fleet.endpoints, 1)),
    ]
    for address, what in rows:
        screen.say(f"  {address:<38} {what}")
    screen.say("Try it:")
    chat = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 20}}'
    screen.say(f"  curl -s {asked}{client.PATH} -H 'content-type: application/json' -d '{chat}'")
    screen.say(f"The agent scrapes each server every {SCRAPE_INTERVAL_SECONDS * 1000:.0f} ms. {UNKNOWN} is not known.")
