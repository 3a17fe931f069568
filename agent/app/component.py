"""What the supervisor runs: the one protocol of every part that starts, changes with the configuration, and stops."""

from __future__ import annotations

from typing import Protocol

from agent.config.config import Config


class CannotStart(Exception):
    """A component cannot run as configured; the text has the address or option, and what to change."""


class Component(Protocol):
    """One part of the process. All methods run on the event loop."""

    name: str

    async def start(self) -> None:
        """Begin to serve. Raises CannotStart and leaves nothing running."""
        ...

    async def apply(self, config: Config) -> None:
        """Change to another configuration, as a whole. Raises CannotStart and keeps the present one."""
        ...

    def readiness(self) -> list[str]:
        """Why the component is not ready, one sentence each; empty when it is."""
        ...

    async def stop(self, grace: float) -> None:
        """Stop within about `grace` seconds. A component that is not running ignores it."""
        ...
