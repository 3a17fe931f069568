"""Requests: picked, rejected, reported on, ended; and failed ext_proc streams."""

from __future__ import annotations

from typing import NamedTuple

from agent.events.exchange import NO_SLO, Exchange, Slo


class Picked(NamedTuple):
    """A request was assigned to an endpoint. `took` is the duration of the decision in seconds.

    `model` is the one that serves the request; `requested` is the one that the client named where that is another.
    `caller` (empty: unnamed) and `priority` are those of its terms.
    """

    pool: str
    profile: str
    model: str
    endpoint: str
    prompt_tokens: int
    predicted_hit_tokens: int
    left_warmest: bool
    took: float
    requested: str = ""
    caller: str = ""
    priority: int = 0


class EncodedBody(NamedTuple):
    """A request had a body with a content-encoding, a value of `agent.requests.unpack.ENCODINGS`. `result`: `read`,
    `unread` (picked without a prompt) or `refused`."""

    pool: str
    encoding: str
    result: str


class Refused(NamedTuple):
    """A request was rejected by the agent, with this HTTP status and reason (one word); `slo` as in `Completed`, the
    rest as in `Picked`."""

    pool: str
    model: str
    status: int
    reason: str
    requested: str = ""
    caller: str = ""
    priority: int = 0
    slo: Slo = NO_SLO


class Reported(NamedTuple):
    """A response had a load report: used if `reason` is empty, else refused (`agent.engines.report.REASONS`)."""

    pool: str
    endpoint: str
    reason: str


class Responded(NamedTuple):
    """The proxy reported the response to a picked request. `result` is a key of `agent.requests.outcomes.RESULTS`."""

    pool: str
    endpoint: str
    result: str


class UnknownLogEntry(NamedTuple):
    """An entry of the proxy's access log is of no request that was picked here and whose end was not reported yet: it
    is one of a peer, a repetition, or of a proxy that does not use this picker."""

    pool: str


class Unreported(NamedTuple):
    """The proxy's access log did not report the end of a picked request."""

    pool: str


class NotFollowed(NamedTuple):
    """The proxy sent a request to `served` that was picked for `picked`, without a failed try there."""

    pool: str
    picked: str
    served: str


class EndpointEjected(NamedTuple):
    """An endpoint gets trial requests only, because its requests failed: `reason` is a key of
    `agent.state.outliers.EJECTION_REASONS`, `last` the result of the last request. `seconds` until the first trial."""

    pool: str
    endpoint: str
    reason: str
    last: str
    consecutive: int
    ratio: float
    seconds: float
    ejections: int


class Ended(NamedTuple):
    """A picked request ended. `how`: `closed` (its stream ended) or `lost` (the agent stopped following it).

    The rest as in `Picked`.
    """

    pool: str
    model: str
    endpoint: str
    took: float
    how: str
    requested: str = ""
    caller: str = ""
    priority: int = 0


class Completed(NamedTuple):
    """The proxy reported how a picked request ended: its last report. `result` is a key of
    `agent.requests.response.RESULTS`, `status` the HTTP status, 0 where there was none; `exchange` is what the proxy
    measured, None where it measures nothing, `slo` what it is measured against. The rest as in `Picked`."""

    pool: str
    model: str
    result: str
    status: int
    exchange: Exchange | None
    requested: str = ""
    caller: str = ""
    priority: int = 0
    slo: Slo = NO_SLO


class Abandoned(NamedTuple):
    """A request ended before its decision: the client left, or the proxy rejected its body. `stage` is the stage that
    held it, or `body` while its body was arriving."""

    pool: str
    stage: str


class StreamBroken(NamedTuple):
    """An ext_proc stream violated the protocol or failed on an error of the agent; `reason` is one word. `http2`: a
    whole connection failed."""

    pool: str
    reason: str
    detail: str
