"""The Lease whose holder does what one replica must do once."""

from __future__ import annotations

from typing import NamedTuple


class LeaseChanged(NamedTuple):
    """The agent began or ceased to hold a Lease (`namespace/name`), or another `holder` has it now; the holder is empty
    where none is known. `released`: the agent is no candidate any more."""

    lease: str
    held: bool
    holder: str
    released: bool


class LeaseFailed(NamedTuple):
    """A request for a Lease failed. `reason`: a word; `detail` says what to change."""

    lease: str
    reason: str
    detail: str
