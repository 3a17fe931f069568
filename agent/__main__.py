"""The command `igw`: one subcommand per module of `agent.commands`, imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

# Subcommand -> summary, in the order of `igw --help`; its module is `agent.commands.<name>`.
COMMANDS: Final = {
    "run": "run the agent: scrape model servers, pick endpoints for Envoy, export gauges",
    "check": "validate a configuration file and print the effective configuration",
    "demo": "run Envoy, emulated servers, the agent and a workload, and print a table",
    "emulate": "run a model server that behaves like vLLM",
    "render": "print the Envoy configuration for a configuration file",
    "explain": "print what determines the demand in replicas of a running agent",
    "simulate": "replay a trace of arrivals through the demand in replicas and the HPA formula",
    "signals": "print the signals reported by each engine, and their series",
}
USAGE_ERROR: Final = 2


def installed_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("inference-gateway-agent")
    except PackageNotFoundError:
        return "unknown (not installed)"


def compiled() -> bool:
    """Whether the hot path is compiled (`make wheel`)."""
    spec = importlib.util.find_spec("agent.exposition.page")
    return spec is not None and not str(spec.origin).endswith(".py")


def _overview() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="igw",
        usage="igw COMMAND [OPTIONS]",
        description="The agent beside an AI inference gateway: it scrapes model servers, picks an endpoint for each\n"
        "request over Envoy's ext_proc, and exports gauges for an autoscaler.",
        epilog=f"commands:\n{rows}\n\n`igw COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", metavar="COMMAND", choices=tuple(COMMANDS), help="one of the commands below"
    )
    parser.add_argument(
        "--version", action="version", version=f"igw {installed_version()}{', compiled' if compiled() else ''}"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; its exit status. 2 for an invalid command line."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    name = given[0] if given else ""
    if name not in COMMANDS:
        _overview().parse_args(given)
        _overview().print_help()
        return USAGE_ERROR
    try:
        command = importlib.import_module(f"agent.commands.{name}")
        parser = argparse.ArgumentParser(
            prog=f"igw {name}", description=command.HELP, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(parser)
        return int(command.main(parser.parse_args(given[1:])))
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as shells report it
    except BrokenPipeError:
        sys.stderr.close()  # standard output is closed, so no message can be printed
        return 141


if __name__ == "__main__":
    sys.exit(main())
