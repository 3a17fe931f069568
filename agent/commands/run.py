"""`igw run`: the agent itself, from a file or from flags."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from agent.config import from_flags
from agent.config.config import Config
from agent.config.file import load
from agent.config.nodes import BadConfig

HELP = """Run the agent: scrape the model servers, pick an endpoint for each request of Envoy, and export gauges for
autoscalers. Configure it with --config FILE, or with --endpoints and the flags below for one pool.
SIGHUP reads the file again; SIGTERM and Ctrl-C stop it, and open requests continue.
Exit status: 0 stopped by a signal, 1 cannot start, 2 usage error."""

# Flags that replace options of the file, and are refused together with one.
_INSTEAD_OF_A_FILE = (
    "endpoints",
    "pool",
    "engine",
    "profile",
    "scrape_interval",
    "ext_proc_address",
    "admin_address",
    "eds_directory",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `igw run`."""
    parser.add_argument("--config", metavar="FILE", help="the configuration file (docs/reference/configuration.md)")
    flags = parser.add_argument_group("instead of a file, for one pool of model servers")
    flags.add_argument("--endpoints", metavar="HOST:PORT,...", help="the model servers; IPv6 as [ADDRESS]:PORT")
    flags.add_argument("--engine", metavar="NAME", help="their engine, or auto (default: vllm)")
    flags.add_argument("--pool", metavar="NAME", help="the pool's name (default: default)")
    flags.add_argument("--profile", metavar="NAME", help="least-cost, affinity or blend (default: least-cost)")
    flags.add_argument("--scrape-interval", metavar="TIME", help="time between two scrapes of a server (default: 1s)")
    flags.add_argument("--ext-proc-address", metavar="HOST:PORT", help="address for Envoy (default: 127.0.0.1:9002)")
    flags.add_argument(
        "--admin-address", metavar="HOST:PORT", help="address of the API and the metrics (default: 127.0.0.1:9090)"
    )
    flags.add_argument("--eds-directory", metavar="DIR", help="keep the endpoints for Envoy in a file there (EDS)")


def configured(args: argparse.Namespace) -> Config:
    """The configuration of the command line. Raises `BadConfig`, or ValueError for a usage error."""
    from agent.app.vocabulary import VOCABULARY

    given = [name for name in _INSTEAD_OF_A_FILE if getattr(args, name) is not None]
    if args.config is not None:
        if given:
            flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ValueError(
                f"--config and {flags} contradict each other; write that into the file, or leave --config out"
            )
        return load(args.config, VOCABULARY)
    if args.endpoints is None:
        raise ValueError("nothing to serve; write --config FILE, or --endpoints HOST:PORT,...")
    return from_flags(
        [address.strip() for address in args.endpoints.split(",")],
        vocabulary=VOCABULARY,
        **{name: getattr(args, name) for name in _INSTEAD_OF_A_FILE[1:]},
    )


def main(args: argparse.Namespace) -> int:
    """Run until a signal stops the agent."""
    try:
        config = configured(args)
    except ValueError as error:
        print(f"igw run: {error}", file=sys.stderr)
        return 2
    except BadConfig as bad:
        print("\n".join(bad.lines()), file=sys.stderr)
        return 1
    from agent.__main__ import installed_version
    from agent.app.process import run

    return run(config, Path(args.config) if args.config else None, installed_version())
