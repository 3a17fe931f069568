"""`envoy`: what the agent and `igw render` have in common for an Envoy of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.addresses import HostList
from agent.config.options import option
from agent.config.values import Boolean, DirectoryPath, Number


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
    retry_server_errors: bool = option(
        Boolean(), "`igw render`: Envoy retries a response of 500, 502 or 504 once, at another endpoint", default=False
    )
    retry_budget: int = option(
        Number(1, 100, whole=True),
        "`igw render`: with `retryServerErrors`, retries of a pool at a time, in percent of its requests in flight",
        20,
    )
