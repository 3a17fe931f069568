"""The sources of endpoints: `PoolConfig.source` -> class. A new source is one file here and one line below."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Final, cast

from agent.config.pools import PoolConfig
from agent.discovery.endpoints import Discovery, DiscoveryParts

SOURCES: Final[Mapping[str, str]] = {
    "endpoints": "agent.discovery.static:StaticDiscovery",
    "kubernetes": "agent.discovery.kubernetes:PodDiscovery",
}


def discovery(pool: PoolConfig, parts: DiscoveryParts) -> Discovery:
    """The discovery of a pool. Raises `CannotDiscover`."""
    make = cast(Callable[[PoolConfig, DiscoveryParts], Discovery], pkgutil.resolve_name(SOURCES[pool.source]))
    return make(pool, parts)
