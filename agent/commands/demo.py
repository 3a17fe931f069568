"""`igw demo`: Envoy, model servers, the agent and a workload on this machine, with a table of the results."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final

HELP = """Start Envoy, four emulated model servers and the agent on this machine. Send one chat workload through them,
round robin and with the picker, each time with empty caches, and print a table of the results. All processes keep
running until Ctrl-C. docs/reference/demo.md explains the output.
Exit status: 0 all requests were answered, 1 cannot start or requests failed, 2 usage error, 130 or 143 stopped."""

_DEFAULT_PROFILE: Final = "least-cost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `igw demo`."""
    parser.add_argument("--once", action="store_true", help="stop everything after the table")
    parser.add_argument(
        "--overload",
        action="store_true",
        help="send twice what the servers can do, at priorities 10, 0 and -1, without and with flow control",
    )
    parser.add_argument(
        "--profiles",
        metavar="NAME,...",
        default=_DEFAULT_PROFILE,
        help="the profiles to compare with round robin: least-cost, affinity, blend (default: %(default)s)",
    )
    parser.add_argument(
        "--port-base",
        metavar="PORT",
        type=int,
        help="listen on nine ports from this one on; 0: on free ports"
        " (default: 8001-8004, 8080, 8081, 9002, 9090 and 9901)",
    )
    load = parser.add_argument_group("workload")
    load.add_argument(
        "--rate",
        metavar="N",
        type=float,
        help="chats per second (default: 24; 4 with --endpoints)",
    )
    load.add_argument(
        "--seconds", metavar="N", type=float, help="duration of each run (default: 14; 30 with --overload)"
    )
    load.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=int,
        help="maximum prompt length (default: about 4,100; with --endpoints: what the model accepts)",
    )
    load.add_argument("--seed", metavar="N", type=int, default=1, help="seed of the workload (default: %(default)s)")
    real = parser.add_argument_group("your own model servers")
    real.add_argument(
        "--endpoints",
        metavar="HOST:PORT,...",
        help="send the workload to these servers, which are neither started nor stopped",
    )
    real.add_argument("--model", metavar="NAME", help="the requested model (default: the first that they list)")


def main(args: argparse.Namespace) -> int:
    """Run the demo."""
    from agent.clock import SystemClock
    from agent.demo.fleet import FleetNotStarted, FleetPorts
    from agent.demo.journey import DemoOptions, run_demo
    from agent.demo.screen import Screen
    from agent.profiles import PRESETS

    profiles = tuple(dict.fromkeys(_split(args.profiles)))
    unknown = [name for name in profiles if name not in PRESETS]
    if unknown or not profiles:
        problem = f"there is no profile {unknown[0]!r}" if unknown else "the list is empty"
        print(f"igw demo: --profiles: {problem}; choose from {', '.join(sorted(PRESETS))}", file=sys.stderr)
        return 2
    endpoints = _split(args.endpoints or "")
    if args.endpoints is not None and not endpoints:
        print("igw demo: --endpoints: the list is empty; write HOST:PORT,...", file=sys.stderr)
        return 2
    if args.model is not None and not endpoints:
        print("igw demo: --model requires --endpoints: the emulated servers have a fixed model", file=sys.stderr)
        return 2
    if args.overload and endpoints:
        print(
            "igw demo: --overload sends to emulated servers, whose capacity is known; remove --endpoints",
            file=sys.stderr,
        )
        return 2
    for name in ("rate", "seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value <= 3600:
            print(f"igw demo: --{name} {value:g}: must be above 0 and at most 3600", file=sys.stderr)
            return 2
    try:
        options = DemoOptions(
            profiles,
            FleetPorts() if args.port_base is None else FleetPorts.base(args.port_base),
            tuple(endpoints),
            args.model,
            args.rate,
            args.seconds,
            args.prompt_tokens,
            args.seed,
            args.once,
            args.overload,
        )
        return asyncio.run(_run(lambda stop: run_demo(options, Screen(), SystemClock(), stop)))
    except FleetNotStarted as error:
        print(f"igw demo: {error}", file=sys.stderr)
        return 1


async def _run(demo: Callable[[asyncio.Event], Awaitable[int | None]]) -> int:
    """The exit status of `demo`, whose stop event a signal sets; 128 + signal if it stopped without a result."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    received: list[int] = []

    def on_signal(number: int) -> None:
        received.append(number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal, number)
    status = await demo(stop)
    return 128 + received[0] if status is None else status


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
