"""`envoy`: what the agent and `igw render` have in common for an Envoy of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.config.addresses import HostList, HostName
from agent.config.options import option
from agent.config.values import Boolean, DirectoryPath, Duration, FilePath, Number

MESSAGE_TIMEOUT_SECONDS: Final = 5.0  # Envoy's default of 0.2 s is shorter than a pause of a busy machine
MAX_MESSAGE_TIMEOUT_SECONDS: Final = 600.0  # as long as OpenAI clients wait by default
STREAM_IDLE_SECONDS: Final = 900.0  # a long prompt in a long queue sends nothing until its first token


@dataclass(frozen=True, slots=True)
class EnvoySection:
    """An Envoy that `igw render` configures."""

    eds_directory: str = option(
        DirectoryPath(),
        "an existing directory where `igw run` keeps the endpoints of each pool in a file that Envoy watches (EDS)",
        "",
        unset="none",
        live=False,
    )
    picker_hosts: tuple[str, ...] = option(
        HostList(),
        "`igw render`: the hosts of the agents that pick, each on the port of a pool's `extProcAddress`; a name stands "
        "for all its addresses, such as that of a headless Service",
        (),
        unset="the host of `extProcAddress`",
    )
    message_timeout: float = option(
        Duration(0.2, 3600),
        "for how long Envoy waits for the picker's answer to a message (`message_timeout` of the ext_proc filter)",
        MESSAGE_TIMEOUT_SECONDS,
        live=False,
    )
    max_message_timeout: float = option(
        Duration(0, 3600),
        "up to which the agent extends it for a request that is held (`max_message_timeout`); 0s: the proxy ignores "
        "extensions, and a request is held for less than `messageTimeout`",
        MAX_MESSAGE_TIMEOUT_SECONDS,
        live=False,
    )
    stream_idle_timeout: float = option(
        Duration(0, 24 * 3600),
        "after which Envoy ends a request without bytes in either direction (`stream_idle_timeout`), one that is held "
        "too; 0s: never",
        STREAM_IDLE_SECONDS,
        live=False,
    )
    retry_server_errors: bool = option(
        Boolean(), "`igw render`: Envoy retries a response of 500, 502 or 504 once, at another endpoint", default=False
    )
    retry_budget: int = option(
        Number(1, 100, whole=True),
        "`igw render`: with `retryServerErrors`, retries of a pool at a time, in percent of its requests in flight",
        20,
    )
    usage: bool = option(
        Boolean(),
        "`igw render`: Envoy reads the token usage of responses for its access log, by a script in Lua",
        default=True,
    )
    picker_ca_file: str = option(
        FilePath(),
        "`igw render`, with `extProc.tls`: a file of Envoy with the CA certificates (PEM) that sign the picker's",
        "",
        unset="Envoy accepts every certificate",
    )
    picker_server_name: str = option(
        HostName(),
        "`igw render`, with `extProc.tls`: the name that Envoy sends (SNI) and verifies in the picker's certificate",
        "",
        unset="the host of the picker's address",
    )
    picker_cert_file: str = option(
        FilePath(),
        "`igw render`, with `extProc.tls`: a file of Envoy with its client certificate (PEM) for the picker",
        "",
        unset="none",
    )
    picker_key_file: str = option(
        FilePath(), "`igw render`: a file of Envoy with the key of that certificate (PEM)", "", unset="none"
    )
