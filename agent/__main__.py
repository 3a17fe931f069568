"""The command `igw`: one subcommand per file of `agent.commands`, loaded only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Final

# Subcommand -> what it does, in the order of `igw --help`; each lives in `agent.commands.<name>`.
COMMANDS: Final = {
    "run": "run the agent: scrape, pick for Envoy, export",
    "check": "check a configuration file and show what it comes to",
    "demo": "show the whole journey: emulated servers, Envoy, the agent, a workload, a table",
    "emulate": "run a model server that behaves like vLLM",
    "render": "print the Envoy configuration that fits a configuration file",
    "signals": "print which model server tells which signal, and under which names",
}
USAGE_ERROR: Final = 2


def installed_version() -> str:
    """The version of the installed distribution."""
    try:
        return version("inference-gateway-agent")
    except PackageNotFoundError:
        return "unknown (not installed)"


def compiled() -> bool:
    """Whether what runs for each scrape and each request is compiled (`make wheel`)."""
    found = importlib.util.find_spec("agent.exposition.page")
    return found is not None and not str(found.origin).endswith(".py")


def _overview() -> argparse.ArgumentParser:
    rows = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="igw",
        usage="igw COMMAND [OPTIONS]",
        description="The agent beside an AI inference gateway: it scrapes model servers, picks an endpoint for each\n"
        "request over Envoy's ext_proc, and exports what an autoscaler may read.",
        epilog=f"commands:\n{rows}\n\n`igw COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", choices=tuple(COMMANDS), help="one of those below")
    parser.add_argument(
        "--version", action="version", version=f"igw {installed_version()}{', compiled' if compiled() else ''}"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; returns its exit status. 2 is a command line that cannot be understood."""
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
        return 130  # the shell's number for a program ended by Ctrl-C
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left; there is nobody to tell
        return 141


if __name__ == "__main__":
    sys.exit(main())
