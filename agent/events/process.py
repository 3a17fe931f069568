"""The process itself: its configuration, and readers of its state."""

from __future__ import annotations

from typing import NamedTuple


class Reloaded(NamedTuple):
    """The configuration was read again: `ok` and what changed, or not `ok` and what is wrong with it.

    `no_file`: there was nothing to read, so that what runs is behind nothing.
    """

    ok: bool
    detail: str
    no_file: bool = False


class WatcherDropped(NamedTuple):
    """A reader of the shared state endpoint was let go, and why (`slow`, `too_many`, `too_large`)."""

    reason: str


class TaskFailed(NamedTuple):
    """A long-running task ended, or a component did not stop in time; the task restarts after `backoff` seconds."""

    task: str
    detail: str
    backoff: float
