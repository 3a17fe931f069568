"""The process itself: reloads of its configuration, and clients of its admin address."""

from __future__ import annotations

from typing import NamedTuple


class Reloaded(NamedTuple):
    """The configuration was read again. `detail` is what changed, or, if not `ok`, what is wrong with it.

    `no_file`: there is no file to read, so the running configuration is not out of date.
    """

    ok: bool
    detail: str
    no_file: bool = False


class WatcherDropped(NamedTuple):
    """A client of the admin address was disconnected or refused: `slow`, `too_many` or `too_large`."""

    reason: str


class TaskFailed(NamedTuple):
    """A long-running task ended, or a component did not stop in time; the task restarts after `backoff` seconds."""

    task: str
    detail: str
    backoff: float
