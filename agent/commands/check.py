"""`igw check`: reads a configuration file as `igw run` does, and prints its problems or the resulting configuration."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from agent.app.vocabulary import VOCABULARY
from agent.config.config import Config
from agent.config.file import load
from agent.config.nodes import BadConfig
from agent.config.options import Section, SectionList, all_options, options, rows
from agent.config.pools import AcceleratorConfig, EndpointConfig, PoolConfig
from agent.config.schema import json_schema
from agent.config.values import show_duration
from agent.engine_specs import MetricSpec
from agent.profiles import PRESETS, ProfileSpec

_SHOWN_ABOVE = (PoolConfig,)  # with what belongs to them

HELP = """Check configuration files. Prints `FILE: ok` and the configuration with all defaults, or every problem as
`FILE:LINE: KEY: what is wrong; what to write`. Exit status: 0 all files are valid, 1 one is not, 2 usage error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `igw check`."""
    parser.add_argument("files", nargs="*", metavar="FILE", help="a configuration file")
    parser.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    parser.add_argument("--options", action="store_true", help="print every option as a table in Markdown and exit")
    parser.add_argument("--schema", action="store_true", help="print the JSON Schema of the file and exit")


def main(args: argparse.Namespace) -> int:
    """0 when all files are valid, 1 when one is not, 2 when none is given."""
    if args.options:
        print(table())
        return 0
    if args.schema:
        print(schema())
        return 0
    if not args.files:
        print("igw check: no file is given; write igw check FILE", file=sys.stderr)
        return 2
    valid = True
    for file in args.files:
        try:
            config = load(file, VOCABULARY)
        except BadConfig as bad:
            valid = False
            print("\n".join(bad.lines()), file=sys.stderr)
        else:
            if not args.quiet:
                print("\n".join(summary(config)))
    return 0 if valid else 1


def summary(config: Config) -> Iterator[str]:
    """A configuration, line by line."""
    yield f"{config.source}: ok"
    for pool in config.pools:
        source = pool.source_in_words()
        parts = [f"profile {pool.profile}", f"ext_proc on {pool.ext_proc_address}", source, *_holding(pool)]
        yield f"  pool {pool.name}: {', '.join(parts)}"
        for endpoint in pool.endpoints:
            written = _written(EndpointConfig, endpoint, "address", "engine")
            yield f"    {endpoint.address}  {', '.join([endpoint.engine, *written])}"
        for entry in pool.accelerators:
            yield f"    accelerators {entry.source}: {', '.join(_written(AcceleratorConfig, entry, 'source'))}"
    if not config.pools:
        yield "  no pools: `igw run` needs one; add pools: with a name, and endpoints or an inferencePool"
    for engine in config.engines:
        yield f"  engine {engine.name}: {', '.join(map(_metric, engine.metrics))}"
    used = {pool.profile for pool in config.pools}
    for name, profile in sorted(config.profiles.items()):
        if name in used or PRESETS.get(name) != profile:
            yield f"  profile {name}: {_profile(profile)}"
    yield from _sections("", Config, config)
    for note in config.notes:
        yield f"  note: {note}"


def _written(type_: type, section: object, *without: str) -> list[str]:
    """The options of a section that have a value, without some."""
    return [
        f"{option.key} {option.show(value)}"
        for option in options(type_)
        if option.key not in without and (value := getattr(section, option.field))
    ]


def _sections(path: str, type_: type, section: object) -> Iterator[str]:
    """Every section within a section, one line each with all its options; those of a list at its end."""
    for row in rows(type_):
        if isinstance(row, SectionList) and row.type not in _SHOWN_ABOVE:
            for number, entry in enumerate(getattr(section, row.field)):
                name = getattr(entry, row.identity) if row.identity else number
                yield f"  {path}{row.key}[{name}]: {', '.join(_written(row.type, entry, row.identity))}"
        if isinstance(row, Section):
            inner, here = getattr(section, row.field), f"{path}{row.key}"
            values = (f"{option.key} {option.show(getattr(inner, option.field))}" for option in options(row.type))
            yield f"  {here}: {', '.join(values)}"
            yield from _sections(f"{here}.", row.type, inner)


def _holding(pool: PoolConfig) -> list[str]:
    """What differs from the defaults for requests of the pool that wait."""
    found = ["requests held at zero"] if pool.scale_from_zero else []
    if pool.hold_limit is not None:
        found.append(f"requests held for {show_duration(pool.hold_limit)} at most")
    return found


def _metric(metric: MetricSpec) -> str:
    """A signal and its source."""
    where = ", ".join(f"{label}={text}" for label, text in metric.where)
    source = f"{metric.sample}{{{where}}}" if where else metric.sample
    return f"{metric.signal} from {source}{' label ' + metric.label if metric.label else ''}"


def _profile(profile: ProfileSpec) -> str:
    filters = [spec.name for spec in profile.filters]
    scorers = [f"{spec.name} x {weight:g}" for spec, weight in profile.scorers]
    return " -> ".join(part for part in (", ".join(filters), " + ".join(scorers)) if part)


def table() -> str:
    """Every option of the agent as a table in Markdown, as in docs/reference/configuration.md."""
    lines = ["| option | type | default | meaning | on reload |", "|---|---|---|---|---|"]
    for path, option in all_options(Config):
        reload = "changes" if option.live else "needs a restart"
        cells = (f"`{path}`", option.type.holds(), option.default_in_words(), option.meaning, reload)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def schema() -> str:
    """The JSON Schema of the file, as in docs/config.schema.json."""
    return json.dumps(json_schema(VOCABULARY), indent=1, ensure_ascii=False)
