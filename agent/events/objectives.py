"""What is wrong with the objectives and the flow headers of requests. No request fails for it.

`pool` is the name of the pool.
"""

from __future__ import annotations

from typing import NamedTuple


class FlowHeaderIgnored(NamedTuple):
    """A header by which a request says how it is served when requests wait has a value that is not used. `reason` is a
    key of `agent.requests.flow_headers.REASONS`."""

    pool: str
    header: str
    reason: str


class UnknownObjective(NamedTuple):
    """A request names an objective that neither the configuration nor an object has: its priority is 0. `first`: it is
    the first request that names it, as far as is remembered; `last_named`: unknown objectives after this one are not
    remembered, and never the first."""

    pool: str
    objective: str
    first: bool
    last_named: bool = False
