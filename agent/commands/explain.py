"""`igw explain`: why a running agent publishes what it does."""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from agent.scaling.picture import Curve, Diagram, draw

HELP = """Explain what a running agent publishes. `igw explain scaling` prints the demand in replicas of each pool: the
number, what determines it, all inputs with their ages, and the last hour. It reads /v1/scaling at the admin address and
computes nothing itself. Exit status: 0 printed, 1 the agent does not answer or has no such pool, 2 usage error."""

TOPICS: Final = ("scaling",)
TIMEOUT_SECONDS: Final = 10.0
MAX_BYTES: Final = 16 << 20
# Rows of the last hour that are printed; the picture has all of them.
SHOWN: Final = 12

Document = Mapping[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `igw explain`."""
    parser.add_argument("topic", metavar="TOPIC", choices=TOPICS, help="what to explain: scaling")
    parser.add_argument(
        "--admin",
        metavar="URL",
        default="http://127.0.0.1:9090",
        help="the agent's admin address (default: http://127.0.0.1:9090)",
    )
    parser.add_argument("--pool", metavar="NAME", help="one pool (default: all)")
    parser.add_argument("--ca-file", metavar="FILE", help="with https: trusted CA certificates (default: the system's)")
    parser.add_argument("--token-file", metavar="FILE", help="send the bearer token in this file")
    parser.add_argument("--svg", metavar="FILE", help="also draw the last hour into this file")


def main(args: argparse.Namespace) -> int:
    """Print the explanation; the exit status."""
    try:
        document = _fetch(args)
    except (OSError, ValueError) as error:
        return _fail(f"{args.admin}: {_words(error)}")
    pools = document["pools"]
    print("\n\n".join("\n".join(lines_of(pool)) for pool in pools) or "the agent has no pool")
    if args.svg:
        try:
            Path(args.svg).write_text(picture(pools), encoding="utf-8")
        except OSError as error:
            return _fail(f"--svg {args.svg}: {error.strerror}")
    return 0


def _fail(message: str) -> int:
    print(f"igw explain: {message}", file=sys.stderr)
    return 1


def _fetch(args: argparse.Namespace) -> Document:
    """The document of /v1/scaling. Raises OSError, ValueError for what is not one."""
    if not args.admin.startswith(("http://", "https://")):
        raise ValueError("write the address as http://HOST:PORT or https://HOST:PORT")
    query = f"?pool={urllib.parse.quote(args.pool)}" if args.pool else ""
    request = urllib.request.Request(f"{args.admin.rstrip('/')}/v1/scaling{query}")  # noqa: S310  checked above
    if args.token_file:
        token = Path(args.token_file).read_text(encoding="utf-8").strip()
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cafile=args.ca_file) if args.admin.startswith("https:") else None
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context) as response:  # noqa: S310  as above
        document = json.loads(response.read(MAX_BYTES))
    if not isinstance(document, dict) or "pools" not in document:
        raise ValueError("this is not the answer of an agent; name its admin address")
    return document


def _words(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        try:
            message = json.loads(error.read(MAX_BYTES))["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = error.reason
        return f"{error.code}: {message}"
    if isinstance(error, urllib.error.URLError):
        return f"no answer: {error.reason}; name the admin address with --admin"
    return str(error)


def lines_of(pool: Document) -> Iterable[str]:
    """The explanation of one pool."""
    number = pool["replicas"]
    if number is None:
        yield f"pool {pool['pool']}: demand is withheld: {pool['withheld']} ({pool['detail']})"
    else:
        held = ", not below the current replicas as too little is known" if pool["partial"] else ""
        yield f"pool {pool['pool']}: {number:.2f} replicas, by {pool['driver']}{held}"
    if pool["age_seconds"] is not None:
        yield f"  oldest reading {pool['age_seconds']:.1f} s ago"
    for need in pool["needs"]:
        value = f"unknown: {need['reason']}" if need["replicas"] is None else f"{need['replicas']:.2f} replicas"
        yield f"  need {need['name']:<10} {value}"
    inputs = pool["inputs"]
    if inputs is not None:
        yield from _inputs(inputs, pool["settings"])
    yield from _past(pool["past"])


def _inputs(inputs: Document, settings: Document) -> Iterable[str]:
    yield (
        f"  replicas: {_shown(inputs['current_replicas'])} current, {_shown(inputs['ready_replicas'])} ready, "
        f"{_shown(inputs['seen_replicas'])} seen (coverage {inputs['coverage']:.2f}, floor "
        f"{settings['coverage_floor']:g}), {_shown(inputs['loading_replicas'])} loading"
    )
    if inputs["arrivals_per_second"] is not None:
        yield (
            f"  arrivals: {inputs['arrivals_per_second']:.2f}/s in the last minute, "
            f"noise {inputs['noise_per_second']:.2f}/s, "
            f"trend {inputs['trend_per_minute']:+.2f}/s a minute; {inputs['expected_per_second']:.2f}/s expected in "
            f"{settings['startup_seconds']:g} s"
        )
    age = inputs["capacity_age_seconds"]
    since = "" if age is None else f", last learnt {age:.0f} s ago"
    capacity = _shown(inputs["capacity_per_second"])
    yield f"  capacity: {capacity} requests/s a replica ({inputs['capacity_source']}{since})"
    yield (
        f"  backlog: {_shown(inputs['waiting_requests'])} waiting at servers, {_shown(inputs['held_requests'])} held, "
        f"{_shown(inputs['credited_requests'])} credited to loading replicas; "
        f"drained within {settings['drain_seconds']:g} s"
    )
    for name in inputs["unknown_replicas"]:
        yield f"  unknown: {name}"


def _past(past: Sequence[Document]) -> Iterable[str]:
    if not past:
        return
    yield f"  {'minutes ago':>12}{'demand':>9}{'current':>9}{'loading':>9}{'expected/s':>12}{'backlog':>9}  by"
    step = max(1, len(past) // SHOWN)
    for each in past[::-step][::-1]:
        yield (
            f"  {each['seconds_ago'] / 60:>12.1f}{_shown(each['replicas']):>9}{_shown(each['current_replicas']):>9}"
            f"{_shown(each['loading_replicas']):>9}{_shown(each['expected_per_second']):>12}"
            f"{_shown(each['backlog_requests']):>9}  {each['driver']}"
        )


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}".rstrip("0").rstrip(".")


def picture(pools: Sequence[Document]) -> str:
    """The last hour of these pools as SVG: demand and replicas, and what arrives."""
    panels = []
    for pool in pools:
        past = pool["past"]
        panels.append(
            Diagram(
                f"replicas of {pool['pool']}",
                [
                    Curve("demand", [each["replicas"] for each in past]),
                    Curve("current", [each["current_replicas"] for each in past]),
                    Curve("loading", [each["loading_replicas"] for each in past]),
                ],
            )
        )
        panels.append(
            Diagram(
                f"requests per second expected by {pool['pool']}",
                [Curve("expected", [each["expected_per_second"] for each in past])],
            )
        )
        panels.append(
            Diagram(
                f"requests that wait for {pool['pool']}",
                [Curve("backlog", [each["backlog_requests"] for each in past])],
            )
        )
    begin = max((each["seconds_ago"] for pool in pools for each in pool["past"]), default=0.0)
    return draw("Demand in replicas", f"{begin / 60:.0f} minutes ago", "now", panels)
