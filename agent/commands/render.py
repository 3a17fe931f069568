"""`igw render`: prints the Envoy configuration for a configuration of the agent."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Final

from agent.app.vocabulary import VOCABULARY
from agent.config import from_flags
from agent.config.config import Config
from agent.config.file import load
from agent.config.flow_control import TRUST_ALL
from agent.config.nodes import BadConfig
from agent.envoy.render import (
    MAX_EJECTION_PERCENT,
    EnvoyConfig,
    EnvoyListener,
    EnvoyPool,
    FailureMode,
    PickerTls,
    PickMode,
    ResponseSource,
    bootstrap,
)
from agent.envoy.yaml import dump
from agent.requests.control_headers import TERMS

HELP = """Print the Envoy configuration for a configuration file of the agent, or for --endpoints.
docs/reference/envoy.md explains each setting. Exit status: 0 printed, 1 the configuration is invalid, 2 usage error."""

_MODES: Final = {mode.value.replace("_", "-"): mode for mode in PickMode}
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # address to listen on -> address to connect to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `igw render`."""
    parser.add_argument("--config", metavar="FILE", help="the agent's file (docs/reference/configuration.md)")
    parser.add_argument("--endpoints", metavar="IP:PORT,...", help="without --config: the model servers of one pool")
    parser.add_argument(
        "--ext-proc-address",
        metavar="HOST:PORT",
        help="with --endpoints: the agent's picker address (default: 127.0.0.1:9002)",
    )
    parser.add_argument(
        "--listen",
        metavar="IP:PORT",
        default="127.0.0.1:8080",
        help="where Envoy listens; each further pool or mode uses the next port (default: 127.0.0.1:8080)",
    )
    parser.add_argument(
        "--mode",
        metavar="MODE,...",
        default="buffered",
        help=f"how requests reach the picker: {', '.join(_MODES)}; one listener for each (default: buffered)",
    )
    parser.add_argument(
        "--admin",
        metavar="IP:PORT",
        default="127.0.0.1:9901",
        help="Envoy's admin address, on loopback (default: 127.0.0.1:9901)",
    )
    parser.add_argument(
        "--responses",
        choices=[source.value for source in ResponseSource],
        default=ResponseSource.ACCESS_LOG.value,
        help="how the agent learns what became of its picks, to take failing endpoints out (default: access-log)",
    )
    parser.add_argument(
        "--eds-directory",
        metavar="DIR",
        help="where Envoy finds the agent's files of endpoints (default: envoy.edsDirectory of the file)",
    )
    parser.add_argument(
        "--failure-mode",
        choices=[mode.value for mode in FailureMode],
        default=FailureMode.CLOSE.value,
        help="while the agent is down: close answers 503, open routes round robin (default: close)",
    )


def main(args: argparse.Namespace) -> int:
    """Print the configuration."""
    try:
        config = _config(args)
        if config.ext_proc.tls.cert_file and not config.envoy.picker_ca_file:
            print(
                "igw render: note: this Envoy accepts every certificate of a picker; set envoy.pickerCaFile",
                file=sys.stderr,
            )
        print(text(envoy_config(config, args), _command(args)), end="")
    except BadConfig as error:
        print("\n".join(error.lines()), file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"igw render: {error}", file=sys.stderr)
        return 2
    return 0


def text(config: EnvoyConfig, command: str) -> str:
    """The configuration, with the command that prints it as the first line."""
    return f"# Rendered by: {command}\n{dump(bootstrap(config))}"


def envoy_config(config: Config, args: argparse.Namespace) -> EnvoyConfig:
    """Envoy's configuration for the agent's. Raises ValueError with what to change."""
    modes = []
    for name in args.mode.split(","):
        if name not in _MODES:
            raise ValueError(f"--mode {name}: choose from {', '.join(_MODES)}")
        modes.append(_MODES[name])
    host, _, first = args.listen.rpartition(":")
    if not host or not first.isdecimal():
        raise ValueError(f"--listen {args.listen}: not IP:PORT")
    pools = []
    listeners: list[EnvoyListener] = []
    eds_directory = config.envoy.eds_directory if args.eds_directory is None else args.eds_directory
    for pool in config.pools:
        if pool.source != "endpoints" and not eds_directory:
            raise ValueError(
                f"pool {pool.name}: its servers are pods, which come and go; set envoy.edsDirectory or "
                "--eds-directory, where the agent keeps them for Envoy"
            )
        picker_host, _, picker_port = pool.ext_proc_address.rpartition(":")
        hosts = [f"[{host}]" if ":" in host else host for host in config.envoy.picker_hosts]
        picker, *replicas = (f"{each}:{picker_port}" for each in hosts or [_WILDCARDS.get(picker_host, picker_host)])
        addresses = tuple(endpoint.address for endpoint in pool.endpoints)
        pools.append(EnvoyPool(pool.name, addresses, picker, reports=pool.orca, replicas=tuple(replicas)))
        for mode in modes:
            name = f"{pool.name}-{mode.value.replace('_', '-')}"
            listeners.append(EnvoyListener(name, f"{host}:{int(first) + len(listeners)}", pool.name, mode))
    return EnvoyConfig(
        tuple(pools),
        tuple(listeners),
        admin=args.admin,
        max_body=config.ext_proc.max_body,
        failure_mode=FailureMode(args.failure_mode),
        responses=ResponseSource(args.responses),
        message_timeout=config.envoy.message_timeout,
        max_message_timeout=config.envoy.max_message_timeout,
        stream_idle_timeout=config.envoy.stream_idle_timeout,
        eds_directory=eds_directory,
        retry_server_errors=config.envoy.retry_server_errors,
        retry_budget=config.envoy.retry_budget,
        # One share for the ejections of both.
        max_ejection_percent=min(MAX_EJECTION_PERCENT, int(config.outlier_detection.max_ejection_percent)),
        picker_tls=_picker_tls(config),
        untrusted_headers=_untrusted_headers(config),
        usage=config.envoy.usage,
    )


def _untrusted_headers(config: Config) -> tuple[str, ...]:
    """The headers that clients may not set."""
    flow = config.flow_control
    if flow.trust_headers == TRUST_ALL:
        return ()
    return (*TERMS, flow.caller_header) if flow.caller_header else TERMS


def _picker_tls(config: Config) -> PickerTls | None:
    """How Envoy connects to the pickers; None for plaintext. Raises ValueError where it lacks a certificate."""
    tls, envoy = config.ext_proc.tls, config.envoy
    if not tls.enabled:
        return None
    if tls.client_ca_file and tls.client_certificate == "required" and not envoy.picker_cert_file:
        raise ValueError("the picker requires a certificate of Envoy: set envoy.pickerCertFile and envoy.pickerKeyFile")
    return PickerTls(envoy.picker_ca_file, envoy.picker_server_name, envoy.picker_cert_file, envoy.picker_key_file)


def _config(args: argparse.Namespace) -> Config:
    if args.config is not None:
        if args.endpoints is not None or args.ext_proc_address is not None:
            raise ValueError("--config has these addresses; remove --endpoints and --ext-proc-address")
        return load(args.config, VOCABULARY)
    if args.endpoints is None:
        raise ValueError("set --config FILE or --endpoints IP:PORT,...")
    return from_flags(args.endpoints.split(","), ext_proc_address=args.ext_proc_address)


def _command(args: argparse.Namespace) -> str:
    """The command line that prints this configuration, without options at their default."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["igw", "render"]
    for name, value in vars(args).items():
        if value != parser.get_default(name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)
