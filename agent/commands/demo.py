"""`igw demo`: the whole journey on this machine, from a scrape to what an autoscaler reads, with a table."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final

HELP = """Show the whole journey on this machine: Envoy, four emulated model servers and the agent, one chat workload
sent through them round robin and with the picker, from cold caches each time, and a table of what came of it. Then all
of it keeps running until Ctrl-C. docs/demo.md explains what you see.
Exit status: 0 every request was answered, 1 cannot start or requests failed, 2 wrong use, 130 or 143 stopped early."""

_DEFAULT_PROFILE: Final = "least-cost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `igw demo` takes."""
    parser.add_argument("--once", action="store_true", help="stop after the table")
    parser.add_argument(
        "--profiles",
        metavar="NAME,...",
        default=_DEFAULT_PROFILE,
        help="the ways to pick, after round robin: least-cost, affinity, blend (default: %(default)s)",
    )
    parser.add_argument(
        "--port-base",
        metavar="PORT",
        type=int,
        help="listen on nine ports from this one on, 0: on free ones"
        " (default: 8001-8004, 8080, 8081, 9002, 9090 and 9901)",
    )
    load = parser.add_argument_group("the workload")
    load.add_argument("--rate", metavar="N", type=float, help="chats a second (default: 24; 4 with --endpoints)")
    load.add_argument("--seconds", metavar="N", type=float, help="how long chats arrive, in each run (default: 14)")
    load.add_argument(
        "--prompt-tokens",
        metavar="N",
        type=int,
        help="the longest prompt (default: about 4,100; what the model takes, with --endpoints)",
    )
    load.add_argument("--seed", metavar="N", type=int, default=1, help="another workload alike (default: %(default)s)")
    real = parser.add_argument_group("your own model servers")
    real.add_argument(
        "--endpoints",
        metavar="HOST:PORT,...",
        help="send the workload to these; none is started, restarted or emptied",
    )
    real.add_argument("--model", metavar="NAME", help="the model to ask for (default: the first that they list)")


def main(args: argparse.Namespace) -> int:
    """Run the demo."""
    from agent.clock import SystemClock
    from agent.demo.fleet import CannotStart, Ports
    from agent.demo.journey import Wish, show
    from agent.demo.screen import Screen
    from agent.profiles import PRESETS

    profiles = tuple(dict.fromkeys(_listed(args.profiles)))
    unknown = [name for name in profiles if name not in PRESETS]
    if unknown or not profiles:
        named = f"there is no profile {unknown[0]!r}" if unknown else "no profile is named"
        print(f"igw demo: --profiles: {named}; choose of {', '.join(sorted(PRESETS))}", file=sys.stderr)
        return 2
    endpoints = _listed(args.endpoints or "")
    if args.endpoints is not None and not endpoints:
        print("igw demo: --endpoints: no address is named; write HOST:PORT,...", file=sys.stderr)
        return 2
    if args.model is not None and not endpoints:
        print("igw demo: --model goes with --endpoints: the emulated servers have one of their own", file=sys.stderr)
        return 2
    for name in ("rate", "seconds"):
        value = getattr(args, name)
        if value is not None and not 0 < value <= 3600:
            print(f"igw demo: --{name} {value:g}: write a number above 0, at most 3600", file=sys.stderr)
            return 2
    try:
        wish = Wish(
            profiles,
            Ports() if args.port_base is None else Ports.base(args.port_base),
            tuple(endpoints),
            args.model,
            args.rate,
            args.seconds,
            args.prompt_tokens,
            args.seed,
            args.once,
        )
        return asyncio.run(_until_told(lambda told: show(wish, Screen(), SystemClock(), told)))
    except CannotStart as error:
        print(f"igw demo: {error}", file=sys.stderr)
        return 1


async def _until_told(show: Callable[[asyncio.Event], Awaitable[int | None]]) -> int:
    """What `show` returns; the shell's number for the signal where that ended it before it had a result."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    came: list[int] = []

    def stop(number: int) -> None:
        came.append(number)
        told.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop, number)
    status = await show(told)
    return 128 + came[0] if status is None else status


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
