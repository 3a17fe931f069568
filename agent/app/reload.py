"""Reads the configuration file again when it changes and on SIGHUP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple

from agent.app.component import CannotStart
from agent.app.vocabulary import VOCABULARY
from agent.config.config import Config
from agent.config.difference import NeedsRestart
from agent.config.file import load
from agent.config.nodes import BadConfig
from agent.events import Hook
from agent.events.process import Reloaded


class _FileState(NamedTuple):
    """Identifies the content of a file without reading it; the symlinks of a ConfigMap are followed."""

    device: int
    inode: int
    modified_ns: int
    size: int


_NEVER: Final = _FileState(0, 0, 0, 0)


class Reload:
    """Reads the file at `path` again and hands a good configuration to `change`, which returns what changed.

    A bad file changes nothing and is counted, and so is the first good one after it, even with the same content.
    `path` is None where the agent was configured by flags.
    """

    def __init__(self, path: Path | None, change: Callable[[Config], Awaitable[list[str]]], hook: Hook) -> None:
        self._path = path
        self._change = change
        self._hook = hook
        self._seen: _FileState | None = _NEVER  # the file may have changed between its reading and the start
        self._missed = False
        self._refused = False  # the last content was refused
        self._lock = asyncio.Lock()

    async def check(self) -> None:
        """Reload if the file has changed."""
        found = _state_of(self._path)
        if found == self._seen:
            self._missed = False
        elif found is None and not self._missed:
            self._missed = True  # an editor may be replacing the file: check once more before it is reported
        else:
            await self.reload(requested=False)

    async def reload(self, *, requested: bool = True) -> bool:
        """True when the agent runs the configuration of the file. A `requested` reload is reported without a change."""
        if self._path is None:
            self._hook(Reloaded(False, "there is no file to read: this agent was configured by flags", no_file=True))
            return False
        async with self._lock:
            self._seen = _state_of(self._path)
            try:
                changed = await self._change(await asyncio.to_thread(load, self._path, VOCABULARY))
            except BadConfig as bad:
                return self._refuse("; ".join(bad.lines()))
            except (NeedsRestart, CannotStart) as refused:
                return self._refuse(str(refused))
            except Exception as error:  # noqa: BLE001  a defect must not pass for a reload that never happened
                return self._refuse(repr(error))
            if changed or requested or self._refused:
                self._hook(Reloaded(True, ", ".join(changed) or "no change"))
            self._refused = False
            return True

    def _refuse(self, why: str) -> bool:
        self._refused = True
        self._hook(Reloaded(False, why))
        return False


def _state_of(path: Path | None) -> _FileState | None:
    """The file's state, or None where there is none."""
    if path is None:
        return None
    try:
        found = path.stat()
    except OSError:
        return None
    return _FileState(found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size)
