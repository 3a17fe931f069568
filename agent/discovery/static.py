"""Endpoints that the configuration lists: addresses as they are, names as what they resolve to.

A proxy is given `ip:port` and never a name, so names are resolved here, and again at an interval: the name of a
headless service resolves to all its pods. A name whose resolution fails keeps its last addresses; one that never had
any is an unresolved endpoint, with the reason.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Final

from agent.config.addresses import join_address, split_address
from agent.config.config import Config
from agent.config.pools import EndpointConfig, PoolConfig
from agent.discovery.endpoints import DiscoveryParts, EndpointSet, Unresolved

RESOLVE_TIMEOUT_SECONDS: Final = 2.0


def is_name(address: str) -> bool:
    """True when the host of `HOST:PORT` has to be resolved."""
    host, _ = split_address(address)
    return not (":" in host or host.replace(".", "").isdecimal())


class StaticDiscovery:
    """The endpoints of one pool's list; names are resolved every `reload.interval`."""

    name = "endpoints"

    def __init__(self, pool: PoolConfig, parts: DiscoveryParts) -> None:
        self._endpoints = pool.endpoints
        self._interval = parts.config.reload.interval
        self._last: dict[str, tuple[str, ...]] = {}
        self._lookups: dict[str, asyncio.Task[tuple[str, ...]]] = {}
        self._wake = asyncio.Event()

    def apply(self, pool: PoolConfig, config: Config) -> None:
        """Another list from the next stream on; names that stay keep their last addresses."""
        self._endpoints = pool.endpoints
        self._interval = config.reload.interval

    def refresh(self) -> None:
        """Resolve names now."""
        self._wake.set()

    async def watch(self) -> AsyncIterator[EndpointSet]:
        """The endpoints now, and again whenever a name resolves to other addresses or still to none."""
        known: EndpointSet | None = None
        names = any(is_name(endpoint.address) for endpoint in self._endpoints)
        while True:
            self._wake.clear()
            found = await self.resolve(self._endpoints)
            if found != known or found.unresolved:
                known = found
                yield found
            try:
                async with asyncio.timeout(self._interval if names else None):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def resolve(self, endpoints: Sequence[EndpointConfig]) -> EndpointSet:
        """The endpoints with their names resolved. Of two entries with one address the first counts."""
        names = [endpoint.address for endpoint in endpoints if is_name(endpoint.address)]
        answers = await asyncio.gather(*map(self._addresses, names), return_exceptions=True)
        failed: dict[str, str] = {}
        resolved: dict[str, tuple[str, ...]] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, OSError | UnicodeError):
                failed[name] = getattr(answer, "strerror", None) or str(answer)
                resolved[name] = self._last.get(name, ())
            elif isinstance(answer, BaseException):
                raise answer
            else:
                resolved[name] = answer
        self._last = resolved
        found: dict[str, EndpointConfig] = {}
        unresolved: dict[str, Unresolved] = {}
        hosts: dict[str, str] = {}
        for endpoint in endpoints:
            name = endpoint.address
            if name in failed and not resolved[name]:
                unresolved[name] = Unresolved(endpoint.engine, failed[name])
            for address in resolved.get(name, (name,)):
                if address not in found and name in resolved:
                    hosts[address] = split_address(name)[0]
                found.setdefault(address, replace(endpoint, address=address))
        return EndpointSet(found, unresolved, hosts)

    async def _addresses(self, name: str) -> tuple[str, ...]:
        """The addresses of a name. TimeoutError after RESOLVE_TIMEOUT_SECONDS.

        The event loop resolves a few names at a time (uvloop: four), and a lookup cannot be cancelled. So a name has
        one lookup at a time, and an answer that is late counts at the next resolution.
        """
        task = self._lookups.get(name)
        if task is None:
            task = self._lookups[name] = asyncio.get_running_loop().create_task(look_up(name))
        done, _ = await asyncio.wait({task}, timeout=RESOLVE_TIMEOUT_SECONDS)
        if not done:
            raise TimeoutError(f"no answer within {RESOLVE_TIMEOUT_SECONDS:g} s")
        self._lookups.pop(name, None)
        return task.result()


async def look_up(name: str) -> tuple[str, ...]:
    """Every address of a name; its IPv4 addresses alone where it has some. Raises OSError or UnicodeError."""
    host, port = split_address(name)
    rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family = {
        family: sorted({row[4][0] for row in rows if row[0] == family}) for family in (socket.AF_INET, socket.AF_INET6)
    }
    hosts = by_family[socket.AF_INET] or by_family[socket.AF_INET6]
    return tuple(join_address(str(found), port) for found in hosts)
