"""The process of the agent: event loop, signals, start and stop messages."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import sys
from pathlib import Path

import uvloop

from agent.app.agent import Agent, ListenAddresses
from agent.app.component import CannotStart
from agent.clock import SystemClock
from agent.config.addresses import is_loopback, split_address
from agent.config.config import Config
from agent.instruments.hook import Instruments
from agent.instruments.log_format import write_log

# Thresholds of the three generations of the garbage collector. With Python's default of 700, 10, 10 the youngest
# generation is collected about twenty times a second, while the values of the last pages are still in use, and the
# oldest every few seconds. With these most objects are freed by reference counting first; a collection of the youngest
# 10,000 takes half a millisecond, one of 30,000 that stay, as those of thousands of new endpoints do, 10 to 20, and one
# of everything happens every few minutes.
_GC_THRESHOLDS = (10_000, 3, 230)


def run(config: Config, path: Path | None, version: str) -> int:
    """Run the agent until a signal stops it; returns the exit status."""
    write_log(
        sys.stderr, "json" if config.log.format == "json" else "text", config.log.level, warnings_of_libraries=True
    )
    _allow_connections()
    try:
        uvloop.run(serve(config, path, version))
    except CannotStart as error:
        print(f"igw: {error}", file=sys.stderr)
        return 1
    return 0


def _allow_connections() -> None:
    """Raise the soft limit of open files (usually 1,024) to the hard one: each endpoint needs a connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(config: Config, path: Path | None, version: str) -> None:
    """Start, wait for SIGTERM or SIGINT, drain, stop. SIGHUP reads the file again."""
    collect_garbage_rarely()
    clock = SystemClock()
    agent = Agent(config, clock, path=path, instruments=Instruments(clock))
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = loop.create_task(agent.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    # Before the first port is open: a signal that arrives then must not kill the process.
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    starting = loop.create_task(agent.start())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        await agent.stop(0.0)
        return
    addresses = starting.result()
    print("\n".join(greeting(config, addresses, version)), flush=True)
    gc.freeze()  # a full collection takes 0.2 s at 10,000 endpoints, during which no request is picked
    await stopping
    print(f"igw: stopping; {agent.in_flight} requests in flight continue undisturbed", flush=True)
    await agent.stop()


def collect_garbage_rarely() -> None:
    """Collect what the start of the program has left, and from then on rarely: before the first pods are listed, as
    collections of them would pause the event loop."""
    gc.collect()
    gc.set_threshold(*_GC_THRESHOLDS)


def greeting(config: Config, addresses: ListenAddresses, version: str) -> list[str]:
    """The lines that are printed when the agent has started."""
    lines = [f"igw {version} is listening; configuration: {config.source}"]
    lines += [
        f"  pool {pool.name}: ext_proc on {addresses.pickers[pool.name]}, profile {pool.profile}, "
        f"{pool.source_in_words()}"
        for pool in config.pools
    ]
    paths = "/metrics /v1/state /v1/state/watch /v1/gauges /v1/picks /v1/flow /v1/scaling /healthz /readyz"
    scheme = "https" if config.admin.tls.enabled else "http"
    lines.append(f"  admin: {scheme}://{addresses.admin}  {paths}")
    if config.admin.insecure and not is_loopback(split_address(config.admin.address)[0]):
        lines.append("  note: admin.insecure: everybody who reaches the admin address can read it")
    lines += [f"  note: {note}" for note in config.notes]
    return lines
