"""What discovery yields: sets of endpoints, in a stream that never ends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol

from agent.config.config import Config
from agent.config.pools import EndpointConfig, PoolConfig
from agent.kube.cluster import Cluster
from agent.state.source import SourceStatus


class Unresolved(NamedTuple):
    """A configured endpoint that has no address at present: what it runs, and why it has none."""

    engine: str
    reason: str


class EndpointSet(NamedTuple):
    """All endpoints of a pool at one instant.

    `endpoints` by address, each with what is known of it beside its address; `unresolved` by the configured name;
    `names`: the host name of each address that was resolved from one; `uids`: the uid of the pod behind each address.
    """

    endpoints: Mapping[str, EndpointConfig]
    unresolved: Mapping[str, Unresolved]
    names: Mapping[str, str]
    uids: Mapping[str, str] = {}

    @property
    def engines(self) -> dict[str, str]:
        """Address, or unresolved name -> engine."""
        return {
            **{address: endpoint.engine for address, endpoint in self.endpoints.items()},
            **{name: each.engine for name, each in self.unresolved.items()},
        }

    def limited_to(self, addresses: AbstractSet[str]) -> EndpointSet:
        """The set without endpoints at other addresses."""
        if self.endpoints.keys() <= addresses:
            return self
        return self._replace(
            endpoints={address: each for address, each in self.endpoints.items() if address in addresses},
            names={address: name for address, name in self.names.items() if address in addresses},
            uids={address: uid for address, uid in self.uids.items() if address in addresses},
        )


class CannotDiscover(Exception):
    """The source of a pool cannot be used in this installation; the text says what to change."""


class DiscoveryParts(NamedTuple):
    """What a source may depend on beside its pool: the configuration, the cluster, and `report`, which is called on the
    event loop with every change of the source's status."""

    config: Config
    cluster: Cluster
    report: Callable[[SourceStatus], None]


class Discovery(Protocol):
    """A source of endpoints; `name` is its key in `agent.discovery.SOURCES`."""

    name: str

    def watch(self) -> AsyncIterator[EndpointSet]:
        """The endpoints now, and again whenever they change or a name is still unresolved; it never ends.

        A second call begins a stream of its own.
        """
        ...

    def apply(self, pool: PoolConfig, config: Config) -> None:
        """Take over a changed configuration; it holds from the next stream on."""
        ...

    def refresh(self) -> None:
        """Look for changes now: an endpoint has gone down, and another may have taken its place."""
        ...
