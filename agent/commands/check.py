"""`igw check`: a configuration file, read as `igw run` reads it, and what it comes to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Final

from agent.app.vocabulary import WORDS
from agent.config import Accelerators, BadConfig, Budget, Config, Endpoint, load
from agent.config.options import SECTIONS, Scrape, options, reference, snake
from agent.engine_specs import MetricSpec
from agent.profiles import PRESETS, ProfileSpec

HELP = """Check configuration files. Prints `FILE: ok` and what the file comes to, defaults included, or every problem
as `FILE:LINE: KEY: what is wrong; what to write`. Exit status: 0 all is well, 1 a file has problems, 2 wrong use."""

# What holds where an option says nothing.
_UNSAID: Final = {
    "fixed": "learnt",
    "path": "the engine's",
    "scrapesPerSecond": "unlimited",
    "cpu": "unlimited",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `igw check` takes."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="a configuration file")
    parser.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    parser.add_argument("--options", action="store_true", help="print every option as a table in Markdown and stop")


def main(args: argparse.Namespace) -> int:
    """0 when all files are well, 1 when one is not, 2 when none was named."""
    if args.options:
        print(table())
        return 0
    if not args.files:
        print("igw check: no file was named; write igw check FILE", file=sys.stderr)
        return 2
    good = True
    for file in args.files:
        try:
            config = load(file, WORDS)
        except BadConfig as bad:
            good = False
            print("\n".join(bad.lines()), file=sys.stderr)
        else:
            if not args.quiet:
                print("\n".join(summary(config)))
    return 0 if good else 1


def summary(config: Config) -> Iterator[str]:
    """What a configuration comes to, line by line."""
    yield f"{config.source}: ok"
    for pool in config.pools:
        size = _count(pool.endpoints)
        yield f"  pool {pool.name}: profile {pool.profile}, ext_proc on {pool.ext_proc_address}, {size}"
        for endpoint in pool.endpoints:
            yield f"    {_endpoint(endpoint)}"
        for entry in pool.accelerators:
            shown = ", ".join(
                f"{row.key} {row.kind.show(value)}"
                for row in options(Accelerators)
                if row.key != "source" and (value := getattr(entry, row.field))
            )
            yield f"    accelerators {entry.source}: {shown}"
    if not config.pools:
        yield "  no pools: `igw run` needs one; add pools: with a name and endpoints"
    for engine in config.engines:
        yield f"  engine {engine.name}: {', '.join(map(_metric, engine.metrics))}"
    used = {pool.profile for pool in config.pools}
    for name, profile in sorted(config.profiles.items()):
        if name in used or PRESETS.get(name) != profile:
            yield f"  profile {name}: {_profile(profile)}"
    for key, section in SECTIONS.items():
        yield f"  {key}: {_section(section, getattr(config, snake(key)))}"
        if section is Scrape:
            yield f"  scrape.budget: {_section(Budget, config.scrape.budget)}"
    for note in config.notes:
        yield f"  note: {note}"


def _section(section: type, values: object) -> str:
    """Every option of a section with its value."""
    return ", ".join(
        f"{row.key} {_UNSAID[row.key] if (value := getattr(values, row.field)) is None else row.kind.show(value)}"
        for row in options(section)
    )


def _endpoint(endpoint: Endpoint) -> str:
    """Address and engine, and whatever else is written."""
    beside = [
        f"{row.key} {row.kind.show(value)}"
        for row in options(Endpoint)
        if row.key not in {"address", "engine"} and (value := getattr(endpoint, row.field))
    ]
    return "  ".join([endpoint.address, ", ".join([endpoint.engine, *beside])])


def _metric(metric: MetricSpec) -> str:
    """A signal and where it comes from."""
    where = ", ".join(f"{label}={text}" for label, text in metric.where)
    source = f"{metric.sample}{{{where}}}" if where else metric.sample
    return f"{metric.signal} from {source}{' label ' + metric.label if metric.label else ''}"


def _count(endpoints: tuple[object, ...]) -> str:
    return f"{len(endpoints)} endpoint" if len(endpoints) == 1 else f"{len(endpoints)} endpoints"


def _profile(profile: ProfileSpec) -> str:
    filters = [spec.name for spec in profile.filters]
    scorers = [f"{spec.name} x {weight:g}" for spec, weight in profile.scorers]
    return " -> ".join(part for part in (", ".join(filters), " + ".join(scorers)) if part)


def table() -> str:
    """Every option of ours as a table in Markdown: what docs/configuration.md shows."""
    rows = ["| option | holds | default | meaning | on reload |", "|---|---|---|---|---|"]
    for row in reference():
        live = "changes" if row.live else "needs a restart"
        rows.append(f"| `{row.key}` | {row.kind.name} | {row.default} | {row.meaning} | {live} |")
    return "\n".join(rows)
