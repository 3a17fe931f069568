"""What the agent knows of the names that become label values."""

from __future__ import annotations

from typing import Protocol


class KnownNames(Protocol):
    """The names that the pools have now."""

    def serves_model(self, name: str) -> bool:
        """Whether a server lists this model, or names this adapter on its page."""
        ...

    def lists_models(self, pool: str) -> bool:
        """Whether the models of this pool are known, from a server or from the configuration."""
        ...

    def has_server(self, address: str) -> bool:
        """Whether the address is an endpoint of a pool."""
        ...


class NothingKnown:
    """The names before there is a pool."""

    def serves_model(self, name: str) -> bool:
        """No model is served."""
        return False

    def lists_models(self, pool: str) -> bool:
        """No list is known."""
        return False

    def has_server(self, address: str) -> bool:
        """Every address may be an endpoint."""
        return True
