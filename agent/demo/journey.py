"""The demo from its start to its table: start the processes, run the workload with each profile, print the results."""

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
from typing import Any, Final, NamedTuple, TypeVar

from agent.clock import Clock
from agent.demo import client, overload
from agent.demo.fleet import (
    EMULATED,
    HOST,
    MODEL,
    SCRAPE_INTERVAL_SECONDS,
    SERVERS,
    DemoFleet,
    FleetNotStarted,
    FleetPorts,
)
from agent.demo.report import UNKNOWN, RunResult, notes, pool_gauges, read_gauges, table, withheld
from agent.demo.screen import Screen
from agent.demo.workload import MIN_PROMPT_TOKENS, ChatTurn, WorkloadShape, best_hit_ratio, plan
from agent.emulator.config import EmulatorConfig
from agent.engines import engine
from agent.engines.mapping import Extractor
from agent.exposition.page import PageRefused
from agent.signals import FINISHED, PREFIX_HITS, PREFIX_QUERIES

T = TypeVar("T")
ROUND_ROBIN: Final = "round robin"
ENGINE: Final = "vllm"
# For servers given by --endpoints: the prompt length where they list no maximum, and the request rate.
REAL_PROMPT_TOKENS: Final = 1500
REAL_RATE: Final = 4.0
# Interval between two samples of the agent's gauges during a run: long, as a sample costs the agent CPU time, and not a
# multiple of its scrape interval, which would make all sampled ages equal.
_SAMPLE_SECONDS: Final = 0.87
_COUNTER_LAG_SECONDS: Final = 3.0  # how long after the last answer a server's counters may lag
_SAMPLE_TEXT: Final = "The quick brown fox jumps over the lazy dog, and 17 others look on. " * 8


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """The options of the command line; None selects a default that suits the servers."""

    profiles: tuple[str, ...]
    ports: FleetPorts
    endpoints: tuple[str, ...] = ()
    model: str | None = None
    rate: float | None = None
    seconds: float | None = None
    prompt_tokens: int | None = None
    seed: int = 1
    once: bool = False
    overload: bool = False


class _Workload(NamedTuple):
    """The model that receives the workload, and the workload's shape."""

    model: str
    shape: WorkloadShape


class _Outcome(NamedTuple):
    """The model that received the workload, and the number of failed requests of all runs."""

    model: str
    failed: int


async def run_demo(options: DemoOptions, screen: Screen, clock: Clock, stop: asyncio.Event) -> int | None:
    """Run the demo until `stop` is set: 0 if every request was answered, 1 if not, None if it stopped before the table.

    Raises FleetNotStarted. All processes that it started have ended when it returns or raises.
    """
    start = clock.now()
    options.ports.check(with_servers=not options.endpoints)
    endpoints = await asyncio.gather(*(_resolve(address) for address in options.endpoints))
    for named, address in zip(options.endpoints, endpoints, strict=True):
        if endpoints.count(address) > 1:
            raise FleetNotStarted(f"--endpoints: {named} is {address}, which is listed twice; remove one of them")
    async with _fleet(options.ports, endpoints, overload.SERVER if options.overload else EMULATED) as fleet:
        compare = _compare_overloaded if options.overload else _compare
        outcome = await _until_stopped(stop, compare(fleet, options, screen, clock))
        if outcome is None:
            screen.print_line("Stopping before the end.")
            return None
        if not options.once:
            _print_addresses(screen, fleet, options, outcome.model)
            screen.print_line()
            screen.print_line(f"The table took {clock.now() - start:.0f} s. All processes keep running until Ctrl-C.")
            await _until_stopped(stop, _watch_processes(fleet, screen))
            screen.print_line("Stopping.")
    return 1 if outcome.failed else 0


async def _until_stopped(stop: asyncio.Event, work: Coroutine[None, None, T]) -> T | None:
    """The result of `work`, or None if `stop` is set before it ends; `work` has ended in both cases."""
    task, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        return None
    finally:
        stopped.cancel()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _compare(fleet: DemoFleet, options: DemoOptions, screen: Screen, clock: Clock) -> _Outcome:
    """Run the workload for each way to pick and print the tables.

    The text contains no address of a process that the demo starts: with `--once` it has ended when the text is read.
    """
    work = await _prepare(fleet, options, screen)
    turns = plan(work.shape)
    _print_workload(screen, work.shape, turns)
    runs = []
    peaks: dict[str, float] = {}
    for name in (ROUND_ROBIN, *options.profiles):
        result, peaks = await _run(fleet, name, work, options, screen, clock)
        runs.append(result)
    screen.title(f"Results of {len(turns)} chats in each run")
    screen.table(("", *(run.name for run in runs)), table(runs))
    for note in notes(runs, best_hit_ratio(turns)):
        screen.print_line(f"  {note}")
    screen.print_line(
        f"  The agent scrapes each server every {SCRAPE_INTERVAL_SECONDS * 1000:.0f} ms. {UNKNOWN} is unknown."
    )
    screen.title("Gauges for an autoscaler (from /v1/gauges of the agent; its /metrics has the same)")
    now = read_gauges(await fleet.json(f"{fleet.admin}/v1/gauges"))
    screen.table(("gauge", "highest in the last run", "now", "age"), pool_gauges(now, peaks))
    screen.print_line(f"  {withheld(now)}")
    return _Outcome(work.model, sum(run.failed for run in runs))


async def _compare_overloaded(fleet: DemoFleet, options: DemoOptions, screen: Screen, clock: Clock) -> _Outcome:
    """Run more than the fleet can do, without and with flow control, and print the table."""
    work = await _prepare(fleet, options, screen)
    shape = replace(work.shape, seconds=overload.SECONDS if options.seconds is None else options.seconds)
    runs = await overload.compare(fleet, shape, options.rate, options.profiles[0], screen, clock)
    return _Outcome(work.model, sum(sum(run.errors.values()) for run in runs))


@contextlib.asynccontextmanager
async def _fleet(ports: FleetPorts, endpoints: Sequence[str], emulated: EmulatorConfig) -> AsyncIterator[DemoFleet]:
    """A fleet whose processes have all ended, and whose folder is deleted, at the end of the block."""
    with tempfile.TemporaryDirectory(prefix="igw-demo-", ignore_cleanup_errors=True) as folder:
        async with client.new_session() as session:
            fleet = DemoFleet(ports, Path(folder), session, endpoints, emulated)
            try:
                yield fleet
            finally:
                await fleet.stop()


async def _prepare(fleet: DemoFleet, options: DemoOptions, screen: Screen) -> _Workload:
    """Start what every run needs, and choose the workload."""
    if fleet.own:
        server = fleet.emulated
        screen.print_line(
            f"Starting {SERVERS} emulated model servers: each computes {server.prefill_tokens_per_second:,.0f} "
            f"prompt tokens per second and caches {server.capacity * server.block_size:,}."
        )
        await fleet.start_servers()
        work = _Workload(MODEL, _with_options(WorkloadShape(), options))
    else:
        screen.print_line(f"Reading the models of {len(fleet.endpoints)} model servers.")
        work = await _real_workload(fleet, options, screen)
    screen.print_line("Starting Envoy with two listeners: round robin, and the agent as its picker.")
    await fleet.start_envoy()
    return work


def _with_options(shape: WorkloadShape, options: DemoOptions) -> WorkloadShape:
    shape = replace(
        shape,
        rate=shape.rate if options.rate is None else options.rate,
        seconds=shape.seconds if options.seconds is None else options.seconds,
        seed=options.seed,
    )
    if options.prompt_tokens is None:
        return shape
    try:
        return shape.within(options.prompt_tokens)
    except ValueError as short:
        raise FleetNotStarted(f"--prompt-tokens: {short}") from short


async def _real_workload(fleet: DemoFleet, options: DemoOptions, screen: Screen) -> _Workload:
    """The workload for servers that the demo did not start: their model, and prompts that fit it."""
    address = fleet.endpoints[0]
    listed = await fleet.json(f"http://{address}/v1/models")
    models = models_of(listed)
    name = options.model or next(iter(models), None)
    if name is None:
        raise FleetNotStarted(f"http://{address}/v1/models lists no model; set --model NAME")
    shape = WorkloadShape(rate=REAL_RATE)
    try:
        counted = await fleet.json(f"http://{address}/tokenize", {"model": name, "prompt": _SAMPLE_TEXT})
        shape = replace(shape, bytes_per_token=len(_SAMPLE_TEXT) / counted["count"])
        fleet.bytes_per_token = max(1, round(shape.bytes_per_token))
    except (FleetNotStarted, KeyError, TypeError, ZeroDivisionError):
        shape = replace(shape, bytes_per_token=3.0)
        screen.print_line(
            "  They have no /tokenize: assuming 3 bytes per token; prompts may be shorter than the model allows."
        )
    max_model_len = models.get(name)
    fits = REAL_PROMPT_TOKENS if max_model_len is None else int(max_model_len * 0.9) - shape.answer_tokens
    options = replace(options, prompt_tokens=options.prompt_tokens or max(MIN_PROMPT_TOKENS, fits))
    shape = _with_options(shape, options)
    screen.print_line(
        f"  Model {name}, prompts of up to {shape.prompt_tokens:,} tokens. These servers are not restarted: the "
        "prompts of each run start with a random word, so that no prompt is cached from an earlier run."
    )
    return _Workload(name, shape)


def models_of(listed: Any) -> dict[str, int | None]:
    """The models in the body of `/v1/models`, each with its maximum length in tokens where that is listed."""
    rows = listed.get("data") if isinstance(listed, dict) else None
    models: dict[str, int | None] = {}
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and isinstance(name := row.get("id"), str) and name:
            max_model_len = row.get("max_model_len")
            models[name] = max_model_len if isinstance(max_model_len, int) else None
    return models


async def _run(
    fleet: DemoFleet, name: str, work: _Workload, options: DemoOptions, screen: Screen, clock: Clock
) -> tuple[RunResult, dict[str, float]]:
    """One run of the workload; its result, and the highest value of each gauge during it."""
    picks = name != ROUND_ROBIN
    salt = ""
    if fleet.own:
        await fleet.reset_prefix_caches()
    else:
        salt = f"{os.urandom(6).hex()} "
    await fleet.start_agent(name if picks else options.profiles[0])
    turns = plan(work.shape, salt)
    how = f"picked by the agent with profile {name}" if picks else "round robin; the agent only scrapes"
    screen.print_line(f"Sending {len(turns)} chats through Envoy, {how}. Caches are empty.")
    before = _counters(await fleet.pages())
    cpu = fleet.agent_cpu_seconds()
    port = fleet.ports.picker if picks else fleet.ports.round_robin
    ages: list[float] = []
    peaks: dict[str, float] = {}
    busy: list[float] = []
    sampler = asyncio.create_task(_sample(fleet, ages, busy, peaks))
    try:
        with screen.run(name, len(turns)) as on_progress:
            progress = await _send(port, turns, work, clock, on_progress)
    finally:
        sampler.cancel()
        await asyncio.wait({sampler})
        sampling_error = None if sampler.cancelled() else sampler.exception()
    spent = _difference(fleet.agent_cpu_seconds(), cpu)
    fleet.check()
    if sampling_error is not None:
        raise sampling_error
    counted = await _counted_since(fleet, before, progress.sent - sum(progress.errors.values()))
    own = (await fleet.agent_page()).decode()
    names = fleet.server_names()
    result = RunResult(
        name,
        progress.sent,
        progress.ttft_seconds,
        dict(progress.errors),
        {names[address]: signals.get(FINISHED) for address, signals in counted.items()},
        _sum(counted, PREFIX_QUERIES),
        _sum(counted, PREFIX_HITS),
        total(own, "igw_pick_predicted_hit_tokens_total") if picks else None,
        total(own, "igw_picks_left_warmest_total") if picks else None,
        spent,
        ages,
        progress.late_seconds,
        busy,
    )
    return result, peaks


async def _send(
    port: int,
    turns: Sequence[ChatTurn],
    work: _Workload,
    clock: Clock,
    on_progress: Callable[[client.RunProgress], None],
) -> client.RunProgress:
    async with client.new_session() as session:
        url = f"http://{HOST}:{port}{client.PATH}"
        return await client.send(session, url, turns, work.model, work.shape.answer_tokens, clock, on_progress)


async def _sample(fleet: DemoFleet, ages: list[float], busy: list[float], peaks: dict[str, float]) -> None:
    """Sample the agent's gauges: page ages, accelerator utilizations, and the highest value of each gauge."""
    while True:
        await asyncio.sleep(_SAMPLE_SECONDS)
        for gauge in read_gauges(await fleet.json(f"{fleet.admin}/v1/gauges")):
            if gauge.value is None:
                continue
            if gauge.name == "igw_endpoint_page_age_seconds":
                ages.append(gauge.value)
            if gauge.name == "igw_endpoint_accelerator_utilization_ratio":
                busy.append(gauge.value)
            peaks[gauge.name] = max(gauge.value, peaks.get(gauge.name, gauge.value))


def _counters(pages: Mapping[str, bytes]) -> dict[str, dict[str, float]]:
    """Address -> signal -> value. Raises FleetNotStarted for a page that the engine's table cannot read."""
    counters: dict[str, dict[str, float]] = {}
    for address, page in pages.items():
        try:
            readings = Extractor(engine(ENGINE)).extract(page).readings
        except PageRefused as refused:
            raise FleetNotStarted(f"the page of {address} is not one of {ENGINE}: {refused}") from refused
        counters[address] = {name: value for name, value in readings.items() if isinstance(value, float)}
    return counters


async def _counted_since(
    fleet: DemoFleet, before: Mapping[str, Mapping[str, float]], answered: int
) -> dict[str, dict[str, float]]:
    """The growth of each server's counters since `before`, once they include all answered requests."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _COUNTER_LAG_SECONDS
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
    """The sum over the servers; None if a server does not have the signal."""
    values = [signals.get(signal) for signals in counted.values()]
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _difference(now: float | None, before: float | None) -> float | None:
    return None if now is None or before is None else now - before


def total(page: str, name: str) -> float:
    """The sum of a counter's series on the agent's page; 0 without a series."""
    beginnings = (f"{name}{{", f"{name} ")
    return sum(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(beginnings))


async def _resolve(address: str) -> str:
    """The address with a host name resolved to an IP address, which Envoy needs. Raises FleetNotStarted."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise FleetNotStarted(f"--endpoints: {address!r} is not HOST:PORT")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host)
        return address
    try:
        resolved = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise FleetNotStarted(f"--endpoints: {host} cannot be resolved: {error.strerror}") from error
    ip = min(resolved, key=lambda row: row[0] != socket.AF_INET)[4][0]
    return f"[{ip}]:{port}" if ":" in str(ip) else f"{ip}:{port}"


async def _watch_processes(fleet: DemoFleet, screen: Screen) -> int:
    """Run until cancelled. Report a model server that ends; raise FleetNotStarted when the agent or Envoy ends."""
    ended: set[str] = set()
    while True:
        await asyncio.sleep(_SAMPLE_SECONDS)
        fleet.check(servers=False)
        for name in fleet.ended_servers():
            if name not in ended:
                ended.add(name)
                screen.print_line(f"{name} has ended; {fleet.admin}/v1/state shows how the agent reports it.")


def _print_workload(screen: Screen, shape: WorkloadShape, turns: Sequence[ChatTurn]) -> None:
    tokens = sum(turn.prompt_tokens for turn in turns) / max(1, len(turns))
    hottest = sum(turn.tenant == 0 for turn in turns) / max(1, len(turns))
    screen.print_line(
        f"Workload: {shape.rate:g} chats per second for {shape.seconds:g} s, {tokens:,.0f} prompt tokens each on "
        f"average; {shape.tenants} tenants with a system prompt of {shape.system_tokens:,} tokens, {hottest:.0%} of "
        f"the chats from one of them; up to {shape.turns} turns per conversation."
    )


def _print_addresses(screen: Screen, fleet: DemoFleet, options: DemoOptions, model: str) -> None:
    """Print the addresses of the running processes, and a request to try."""
    ports = fleet.ports
    picker = f"http://{HOST}:{ports.picker}"
    screen.title("Addresses")
    rows = [
        (f"{picker}/v1", f"Envoy with the agent as its picker (profile {options.profiles[-1]})"),
        (f"http://{HOST}:{ports.round_robin}/v1", "Envoy, round robin"),
        (f"{fleet.admin}/v1/state", "every endpoint and signal with its age; /v1/state/watch streams the changes"),
        (f"{fleet.admin}/v1/picks", "the last picks with their scores"),
        (f"{fleet.admin}/v1/gauges", "the gauges for an autoscaler, or why they are withheld"),
        (f"{fleet.admin}/metrics", "the agent's metrics for Prometheus"),
        (f"http://{HOST}:{ports.envoy_admin}", "Envoy's admin interface"),
        *((f"http://{address}/metrics", name) for address, name in fleet.server_names().items()),
    ]
    for address, what in rows:
        screen.print_line(f"  {address:<38} {what}")
    screen.print_line("Try:")
    chat = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 20}}'
    screen.print_line(f"  curl -s {picker}{client.PATH} -H 'content-type: application/json' -d '{chat}'")
