"""Endpoint views and snapshots made by hand, for tests of their readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import strategies as st

from agent.signals import KV_USAGE, RUNNING, SIGNALS, WAITING, SignalKind, Value
from agent.state.health import Health
from agent.state.identity import UNIDENTIFIED, Identity
from agent.state.snapshot import EndpointView, Prefix, Snapshot, Work
from agent.state.source import SourceStatus

STALE_AFTER = 3.0
IDLE: Mapping[str, Value] = {RUNNING: 0.0, WAITING: 0.0, KV_USAGE: 0.0}


def view(
    address: str,
    values: Mapping[str, Value] = IDLE,
    *,
    at: float = 0.0,
    health: Health = Health.HEALTHY,
    backlog_seconds: float = 0.0,
    rate: float = 1000.0,
    requests: int = 0,
    corrected: bool = True,
    foreign: float = 0.0,
    queue_seconds: float = 0.0,
    identity: Identity = UNIDENTIFIED,
) -> EndpointView:
    """An endpoint of a snapshot at time 0; its readings were requested at `at`. `backlog_seconds` are of prefill."""
    return EndpointView(
        address,
        "vllm",
        health,
        "" if health is Health.HEALTHY else "made_so",
        values,
        {},
        at,
        0,
        STALE_AFTER,
        Work(requests, backlog_seconds, rate, "configured", corrected, foreign, queue_seconds),
        Prefix(0.0, None),
        identity=identity,
    )


def snapshot(*views: EndpointView, pool: str = "pool", source: SourceStatus | None = None) -> Snapshot:
    """These endpoints at time 0."""
    return Snapshot(pool, 1, 0.0, STALE_AFTER, tuple(sorted(views, key=lambda each: each.address)), source=source)


class FixedIndex:
    """A prefix index with fixed results: address -> leading blocks; all prefixes are shared, or none is."""

    def __init__(self, blocks: Mapping[str, int] | None = None, *, all_shared: bool = False) -> None:
        self.blocks = blocks or {}
        self.all_shared = all_shared

    def match(self, chain: Sequence[int], addresses: Sequence[str]) -> list[int]:
        """The fixed number for each address, at most the length of the chain."""
        return [min(len(chain), self.blocks.get(address, 0)) for address in addresses]

    def shared(self, chain: Sequence[int], depth: int) -> bool:
        """The fixed result."""
        return self.all_shared


def _values(name: str) -> st.SearchStrategy[Value]:
    row = SIGNALS[name]
    return (
        st.frozensets(st.text(max_size=5), max_size=4) if row.kind is SignalKind.NAMES else st.floats(row.low, row.high)
    )


# Any endpoint: each signal known or not, any health, any work.
views = st.builds(
    view,
    st.text(min_size=1, max_size=9),
    st.fixed_dictionaries({}, optional={name: _values(name) for name in SIGNALS}),
    at=st.floats(-10, 0),
    health=st.sampled_from(list(Health)),
    backlog_seconds=st.floats(0, 1e6),
    rate=st.floats(1, 1e6),
    requests=st.integers(0, 10**6),
    foreign=st.floats(0, 1e6),
    queue_seconds=st.floats(0, 1e6),
)
