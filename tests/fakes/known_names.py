"""Names of pools that a test sets."""

from __future__ import annotations

from collections.abc import Iterable


class ScriptedNames:
    """`models` are listed by servers of the pools in `listing`; `servers` are their endpoints."""

    def __init__(self, models: Iterable[str] = (), listing: Iterable[str] = ("pool",)) -> None:
        self.models = set(models)
        self.listing = set(listing)
        self.servers: set[str] = set()

    def serves_model(self, name: str) -> bool:
        return name in self.models

    def lists_models(self, pool: str) -> bool:
        return pool in self.listing

    def has_server(self, address: str) -> bool:
        return address in self.servers
