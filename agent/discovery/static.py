"""Endpoints that the configuration lists: addresses as they stand, names as what they resolve to right now.

A proxy is told `ip:port` and never a name, so names are resolved here, and again from time to time: the name of a
headless service stands for all its pods. A name that cannot be resolved keeps what it stood for last; one that never
could is an endpoint that nobody can reach, and is told as such with the reason.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from agent.config import Endpoint
from agent.config.values import join_address, split_address

LOOK_UP_SECONDS: Final = 2.0


class Resolved(NamedTuple):
    """What can be reached, by address, each with what is known of it beside its address (engine, labels, node, pod);
    `unknown`, the names that stand for nothing: name -> engine and why; `names`, the host's name of each
    address that was looked up."""

    endpoints: dict[str, Endpoint]
    unknown: dict[str, tuple[str, str]]
    names: dict[str, str]

    @property
    def engines(self) -> dict[str, str]:
        """Address -> engine."""
        return {address: endpoint.engine for address, endpoint in self.endpoints.items()}


def is_name(address: str) -> bool:
    """True when the host of `HOST:PORT` has to be looked up."""
    host, _ = split_address(address)
    return not (":" in host or host.replace(".", "").isdecimal())


class StaticEndpoints:
    """The resolver of one pool's list; it remembers the last answer for each name."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, ...]] = {}
        self._asked: dict[str, asyncio.Task[tuple[str, ...]]] = {}

    async def resolve(self, endpoints: Sequence[Endpoint]) -> Resolved:
        """What these endpoints stand for now. An address that two of them stand for keeps the first one's words."""
        names = [endpoint.address for endpoint in endpoints if is_name(endpoint.address)]
        answers = await asyncio.gather(*map(self._ask, names), return_exceptions=True)
        why: dict[str, str] = {}
        found: dict[str, tuple[str, ...]] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, OSError | UnicodeError):
                why[name] = getattr(answer, "strerror", None) or str(answer)
                found[name] = self._last.get(name, ())
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[name] = answer
        self._last = found
        reached: dict[str, Endpoint] = {}
        unknown: dict[str, tuple[str, str]] = {}
        called: dict[str, str] = {}
        for endpoint in endpoints:
            if endpoint.address in why and not found[endpoint.address]:
                unknown[endpoint.address] = endpoint.engine, why[endpoint.address]
            for address in found.get(endpoint.address, (endpoint.address,)):
                if address not in reached and endpoint.address in found:
                    called[address] = split_address(endpoint.address)[0]
                reached.setdefault(address, replace(endpoint, address=address))
        return Resolved(reached, unknown, called)

    async def _ask(self, name: str) -> tuple[str, ...]:
        """What the name stands for; TimeoutError when nobody says so in time, be it that many names wait before it: the
        event loop looks up a few at a time (uvloop: four), on threads that nothing else needs.

        A name is asked for once at a time, as the system's resolver cannot be told to stop; an answer that comes late
        is taken at the next look.
        """
        task = self._asked.get(name)
        if task is None:
            task = self._asked[name] = asyncio.get_running_loop().create_task(_look_up(name))
        done, _ = await asyncio.wait({task}, timeout=LOOK_UP_SECONDS)
        if not done:
            raise TimeoutError(f"no answer within {LOOK_UP_SECONDS:g} s")
        self._asked.pop(name, None)
        return task.result()


async def _look_up(name: str) -> tuple[str, ...]:
    """Every address that the name stands for; those of IPv4 alone where it has some. Raises OSError or UnicodeError."""
    host, port = split_address(name)
    rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    by_family = {
        family: sorted({row[4][0] for row in rows if row[0] == family}) for family in (socket.AF_INET, socket.AF_INET6)
    }
    hosts = by_family[socket.AF_INET] or by_family[socket.AF_INET6]
    return tuple(join_address(str(found), port) for found in hosts)
