"""The sources of endpoints: what is wrong with the objects that a pool's endpoints come from."""

from __future__ import annotations

from typing import NamedTuple


class SourceProblemFound(NamedTuple):
    """Something is wrong with the source of a pool's endpoints, or with what it selects. `reason` is a word in
    CamelCase as in a Kubernetes Event, `message` names the object and says what to change. `again`: a problem of this
    reason was there already, with another message."""

    pool: str
    reason: str
    message: str
    again: bool = False


class SourceProblemSolved(NamedTuple):
    """No problem with this reason is left."""

    pool: str
    reason: str
