"""Keeps a file of each pool's endpoints for Envoy, and holds an endpoint back until Envoy has had time to read it.

The files are in `envoy.edsDirectory`; without it nothing is written or held back. `agent.envoy.rollout` decides what
is in a file and what may be picked. A file is replaced by a rename, so that Envoy never reads half of one, and only
where its text changes. A file that another program changed or deleted is written again within CHECK_SECONDS: without
its file Envoy does not start.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.app.component import CannotStart
from agent.clock import Clock
from agent.config.config import Config
from agent.discovery.endpoints import EndpointSet
from agent.envoy.endpoints import addresses_of, document, file_name
from agent.envoy.rollout import RETRY_SECONDS, EndpointRollout
from agent.events import Hook
from agent.events.process import TaskFailed

CHECK_SECONDS: Final = 5.0


class EndpointFiles:
    """A component: the files of all pools. Its directory does not change while it runs."""

    name = "endpoint-files"

    def __init__(self, config: Config, clock: Clock, hook: Hook) -> None:
        directory = config.envoy.eds_directory
        self._directory = Path(directory) if directory else None
        self._clock = clock
        self._hook = hook
        self._rollouts: dict[str, EndpointRollout] = {}  # they outlast a stream: a reload begins another one

    async def start(self) -> None:
        """Check that files can be written to the directory."""
        if self._directory is not None:
            await asyncio.to_thread(_check, self._directory)

    async def apply(self, config: Config) -> None:
        """Nothing changes: another directory needs a restart, and pools bring their own endpoints."""

    def readiness(self) -> list[str]:
        """Always ready: where a file cannot be written, the endpoints that Envoy knows are served all the same."""
        return []

    async def stop(self, grace: float) -> None:
        """The files stay for an Envoy that starts before the agent does."""

    async def follow(self, pool: str, sets: AsyncIterator[EndpointSet]) -> AsyncIterator[EndpointSet]:
        """The endpoint sets of a pool, each once its endpoints may be picked.

        Where the file cannot be written, a set comes without the endpoints that Envoy does not know.
        """
        if self._directory is None:
            async for each in sets:
                yield each
            return
        path = self._directory / file_name(pool)
        found: EndpointSet | None = None
        yielded: frozenset[str] | None = None
        if pool not in self._rollouts:
            text = await asyncio.to_thread(_text_of, path)
            self._rollouts[pool] = EndpointRollout(None if text is None else addresses_of(text), self._clock.now())
        rollout = self._rollouts[pool]
        coming = asyncio.ensure_future(anext(sets))
        try:
            while True:
                await asyncio.wait({coming}, timeout=min(rollout.wait(self._clock.now()), CHECK_SECONDS))
                if coming.done():
                    found, yielded = coming.result(), None
                    coming = asyncio.ensure_future(anext(sets))
                    rollout.want(found.endpoints)
                if found is None:
                    continue
                await self._write(pool, path, rollout)
                pickable = rollout.pickable(self._clock.now())
                if pickable is not None and pickable != yielded:
                    yielded = pickable
                    yield found.limited_to(pickable)
        finally:
            if coming.cancel():
                with suppress(asyncio.CancelledError):
                    await coming

    async def empty(self, pool: str) -> None:
        """Write the file of a removed pool without endpoints. An Envoy whose configuration still names it could not
        start without the file."""
        if self._directory is None:
            return
        self._rollouts.pop(pool, None)
        try:
            await asyncio.to_thread(_replace, self._directory / file_name(pool), document(pool, ()))
        except OSError as error:
            self._failed(pool, error, 0.0)

    async def _write(self, pool: str, path: Path, rollout: EndpointRollout) -> None:
        """Write the pool's file if its text is not what it must be now."""
        addresses = rollout.file(self._clock.now())
        text = document(pool, addresses)
        try:
            if await asyncio.to_thread(_text_of, path) != text:
                await asyncio.to_thread(_replace, path, text)
        except OSError as error:
            rollout.failed(self._clock.now())
            self._failed(pool, error, RETRY_SECONDS)
        else:
            rollout.wrote(addresses, self._clock.now())

    def _failed(self, pool: str, error: OSError, retry: float) -> None:
        what = f"{self._directory}/{file_name(pool)} cannot be written: {error.strerror or error}"
        self._hook(TaskFailed(f"{self.name}/{pool}", f"{what}; Envoy keeps the endpoints that it has", retry))


def _check(directory: Path) -> None:
    """Raises CannotStart where no file can be written to the directory."""
    where = f"envoy.edsDirectory {directory}"
    if not directory.is_dir():
        what = "is not a directory" if directory.exists() else "does not exist"
        raise CannotStart(f"{where} {what}; create it, for the agent and Envoy")
    try:
        _replace(directory / f".igw-{secrets.token_hex(4)}", "").unlink()
    except OSError as error:
        raise CannotStart(f"{where} cannot be written to: {error.strerror}; change its permissions") from error


def _text_of(path: Path) -> str | None:
    """The text of a file, empty where it cannot be read; None where there is no file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError:
        return ""


def _replace(path: Path, text: str) -> Path:
    """Write a file as a whole: readers see the old text or the new one. Raises OSError."""
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    return path
