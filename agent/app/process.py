"""A process around the agent: event loop, signals, what it prints at its start and its end."""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import sys
from pathlib import Path

import uvloop

from agent.app.agent import Agent, CannotStart, Ports
from agent.clock import SystemClock
from agent.config import Config
from agent.instruments import Instruments
from agent.log_lines import write_log

# Objects made and not given back, collections of the young, and of the middle-aged. With Python's own 700, 10, 10 the
# young are looked at some twenty times a second, when what a page brought still lives, and all there is in seconds. So
# most are gone by themselves before, and one of all is the work of minutes; to look at 10,000 takes half a millisecond.
_COLLECT_AFTER = (10_000, 10, 70)


def run(config: Config, path: Path | None, version: str) -> int:
    """Run the agent until it is told to stop; returns the exit status."""
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
    """Each endpoint takes a connection, and the usual soft limit of 1,024 is for old programs: take the hard one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(config: Config, path: Path | None, version: str) -> None:
    """Start, wait for SIGTERM or SIGINT, drain, stop. SIGHUP reads the file again."""
    clock = SystemClock()
    agent = Agent(config, clock, path=path, instruments=Instruments(clock))
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = loop.create_task(agent.reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    # Before the first port is open, so that nobody who saw one can send a signal that would kill us.
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, told.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    ports = await agent.start()
    print("\n".join(greeting(config, ports, version)), flush=True)
    collect_seldom()
    await told.wait()
    in_flight = sum(pool.in_flight for pool in agent.pools.values())
    print(f"igw: stopping; {in_flight} requests in flight are let go of unharmed", flush=True)
    await agent.stop()


def collect_seldom() -> None:
    """What lives now lives until the end: the collector need not look at it again. And it looks seldom at all that
    came since: that takes a fifth of a second where there are 10,000 endpoints, in which no request is picked for."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_COLLECT_AFTER)


def greeting(config: Config, ports: Ports, version: str) -> list[str]:
    """What a person wants to know when the agent has started."""
    lines = [f"igw {version} is listening; configuration: {config.source}"]
    for pool in config.pools:
        count = len(pool.endpoints)
        lines.append(
            f"  pool {pool.name}: ext_proc on {ports.pickers[pool.name]}, profile {pool.profile}, "
            f"{count} endpoint{'' if count == 1 else 's'}"
        )
    lines.append(f"  admin: http://{ports.admin}  /metrics /v1/state /v1/state/watch /v1/gauges /healthz /readyz")
    lines += [f"  note: {note}" for note in config.notes]
    return lines
