"""`igw signals`: the signals reported by each engine, and their metric names."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Final

from agent.app.vocabulary import VOCABULARY
from agent.config.file import load
from agent.config.nodes import BadConfig
from agent.config.values import suggestion
from agent.engines import ENGINES, engine, matrix
from agent.engines.custom import tables
from agent.engines.table import Engine

HELP = """Print the signals reported by each engine; with --engine, the sources of each signal of one engine, or why it
has none. docs/reference/signals.md describes the signals.
Exit status: 0 printed, 1 the configuration has problems, 2 wrong use."""

_FORMATS: Final = ("text", "markdown", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `igw signals`."""
    parser.add_argument("--engine", metavar="NAME", help="one engine: the sources of each signal, or why it has none")
    parser.add_argument("--config", metavar="FILE", help="add the engines of this configuration file")
    parser.add_argument("--format", choices=_FORMATS, default="text", help="output format (default: text)")


def main(args: argparse.Namespace) -> int:
    """Print the matrix, or one engine; the exit status."""
    known = {name: engine(name) for name in ENGINES}
    if args.config is not None:
        try:
            known |= tables(load(args.config, VOCABULARY).engines)
        except BadConfig as bad:
            print("\n".join(bad.lines()), file=sys.stderr)
            return 1
    if args.engine is not None and args.engine not in known:
        print(
            f"igw signals: there is no engine {args.engine!r}; {suggestion(args.engine, sorted(known))}",
            file=sys.stderr,
        )
        return 2
    wanted = [known[name] for name in sorted(known) if args.engine in {None, name}]
    print("\n".join(_lines(wanted, args.format, one=args.engine is not None)))
    return 0


def _lines(wanted: list[Engine], format_: str, *, one: bool) -> Iterable[str]:
    if format_ == "json":
        return [json.dumps(matrix.document(wanted), indent=2)]
    if one:
        return matrix.engine_markdown(wanted[0]) if format_ == "markdown" else matrix.engine_text(wanted[0])
    return matrix.matrix_markdown(wanted) if format_ == "markdown" else matrix.matrix_text(wanted)
