"""The sources of endpoints: key of a pool's section -> class. A new source is one file here and one line below."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Final, cast

from agent.config.pools import PoolConfig
from agent.discovery.endpoints import Discovery

SOURCES: Final[Mapping[str, str]] = {
    "endpoints": "agent.discovery.static:StaticDiscovery",
}


def discovery(pool: PoolConfig, interval: float) -> Discovery:
    """The discovery of a pool: the first source whose key the pool sets, else that of the listed endpoints.

    `interval` in seconds, for sources that have to look for changes.
    """
    where = next((where for key, where in SOURCES.items() if getattr(pool, key, None)), SOURCES["endpoints"])
    make = cast(Callable[[PoolConfig, float], Discovery], pkgutil.resolve_name(where))
    return make(pool, interval)
