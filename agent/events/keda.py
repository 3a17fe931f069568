"""KEDA, which calls the agent as an external scaler. `pool` is empty where a call names none that exists."""

from __future__ import annotations

from typing import Final, NamedTuple

OK: Final = "ok"


class ScalerCalled(NamedTuple):
    """A call was answered, or a stream was opened or refused. `rpc` is the method, empty for a connection that failed;
    `result` is one of `agent.serve.keda.service.RESULTS`; `scaled_object` is namespace/name as KEDA sends it."""

    rpc: str
    pool: str
    scaled_object: str
    result: str
    detail: str


class PoolActivated(NamedTuple):
    """`streams` open streams were sent that the pool is active, after they were sent that it is idle or nothing;
    `held` requests waited for it then."""

    pool: str
    streams: int
    held: int


class ScalerStreams(NamedTuple):
    """The number of open streams after a change."""

    open: int
