"""`igw render`: the Envoy configuration that fits the agent's own."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Final

from agent.app.vocabulary import WORDS
from agent.config import from_flags
from agent.config.config import Config
from agent.config.file import load
from agent.config.nodes import BadConfig
from agent.envoy.render import FailureMode, Listener, Pool, Settings, Way, bootstrap
from agent.envoy.text import yaml

HELP = """Print the Envoy configuration that fits a configuration file of the agent, or --endpoints. docs/envoy.md says
what each setting is for. Exit status: 0 printed, 1 the configuration has problems, 2 wrong use."""

_WAYS: Final = {way.value.replace("_", "-"): way for way in Way}
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # an address to listen on -> one to connect to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `igw render` takes."""
    parser.add_argument("--config", metavar="FILE", help="the agent's configuration file (docs/configuration.md)")
    parser.add_argument("--endpoints", metavar="IP:PORT,...", help="instead of a file: the model servers of one pool")
    parser.add_argument(
        "--ext-proc-address", metavar="HOST:PORT", help="with --endpoints: the agent (default: 127.0.0.1:9002)"
    )
    parser.add_argument(
        "--listen",
        metavar="IP:PORT",
        default="127.0.0.1:8080",
        help="where Envoy listens; a further pool or mode takes the next port (default: 127.0.0.1:8080)",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE,...",
        default="buffered",
        help=f"how requests reach the picker: {', '.join(_WAYS)}; several make a listener each (default: buffered)",
    )
    parser.add_argument(
        "--admin", metavar="IP:PORT", default="127.0.0.1:9901", help="Envoy's own admin address, on loopback"
    )
    parser.add_argument(
        "--failure-mode",
        choices=[mode.value for mode in FailureMode],
        default=FailureMode.CLOSE.value,
        help="while the agent is down: close answers 503, open goes on round robin (default: close)",
    )


def main(args: argparse.Namespace) -> int:
    """Print it."""
    try:
        config = _config(args)
        print(text(settings(config, args), _command(args)), end="")
    except BadConfig as bad:
        print("\n".join(bad.lines()), file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"igw render: {error}", file=sys.stderr)
        return 2
    return 0


def text(what: Settings, command: str) -> str:
    """The configuration with a first line that says where it comes from."""
    return f"# Rendered by: {command}\n{yaml(bootstrap(what))}"


def settings(config: Config, args: argparse.Namespace) -> Settings:
    """What to render for this configuration. Raises ValueError with what to change."""
    ways = []
    for name in args.mode.split(","):
        if name not in _WAYS:
            raise ValueError(f"--mode {name}: choose of {', '.join(_WAYS)}")
        ways.append(_WAYS[name])
    host, _, first = args.listen.rpartition(":")
    if not host or not first.isdecimal():
        raise ValueError(f"--listen {args.listen}: write IP:PORT")
    pools = []
    listeners: list[Listener] = []
    for pool in config.pools:
        picker_host, _, picker_port = pool.ext_proc_address.rpartition(":")
        picker = f"{_EVERYWHERE.get(picker_host, picker_host)}:{picker_port}"
        addresses = tuple(endpoint.address for endpoint in pool.endpoints)
        pools.append(Pool(pool.name, addresses, picker, reports=pool.orca))
        for way in ways:
            name = f"{pool.name}-{way.value.replace('_', '-')}"
            listeners.append(Listener(name, f"{host}:{int(first) + len(listeners)}", pool.name, way))
    return Settings(
        tuple(pools),
        tuple(listeners),
        admin=args.admin,
        max_body=config.ext_proc.max_body,
        failure_mode=FailureMode(args.failure_mode),
    )


def _config(args: argparse.Namespace) -> Config:
    if args.config is not None:
        if args.endpoints is not None or args.ext_proc_address is not None:
            raise ValueError("--config says where everything is; leave --endpoints and --ext-proc-address out")
        return load(args.config, WORDS)
    if args.endpoints is None:
        raise ValueError("nothing to render for; write --config FILE, or --endpoints IP:PORT,...")
    return from_flags(args.endpoints.split(","), ext_proc_address=args.ext_proc_address)


def _command(args: argparse.Namespace) -> str:
    """The command line that prints the same again, without what is the default anyway."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["igw", "render"]
    for name, value in vars(args).items():
        if value != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
