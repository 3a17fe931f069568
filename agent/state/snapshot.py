"""All endpoints of one pool at one instant: immutable, replaced as a whole by its one writer (`agent.state.store`).

A reader may keep a snapshot as long as it likes. At `good_until` a reading or a health in it expires, and the store
takes a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.accelerators.combine import Accelerators
from agent.engines.mapping import NO_HISTOGRAMS
from agent.signals import Histogram, Reading, Value
from agent.state.counter_rates import Counters
from agent.state.freshness import is_fresh
from agent.state.health import Health
from agent.state.identity import UNIDENTIFIED, Identity
from agent.state.outliers import Errors
from agent.state.source import SourceStatus

_BLIND: Final = Health.BLIND


class Work(NamedTuple):
    """The requests at one endpoint, and how long the next one waits there.

    `requests` are those in flight that the agent knows: its own, and `of_peers` that other replicas report. `foreign`
    are those of others (another gateway, a replica that does not report, the agent itself before a restart), as the
    last page shows them. `busy_until` (monotonic seconds) is the estimate of when all
    prefill is done at `rate` tokens of uncached prompt a second. `rate_source` is `configured`, `learnt`, `pool` (the
    median of the pool's learnt rates) or `default`. The backlog shrinks as time passes, so it is a function of `now`
    and not a field. `queue_seconds` is the wait in a queue that something else than prefill delays; it lasts until a
    request ends or the next page. A request that arrives now is scheduled after the larger of the two. `corrected`: the
    queue on a fresh page has corrected the estimate; otherwise requests from elsewhere are missing.
    """

    requests: int
    busy_until: float
    rate: float
    rate_source: str
    corrected: bool = True
    foreign: float = 0.0
    queue_seconds: float = 0.0
    of_peers: int = 0

    @property
    def load(self) -> float:
        """Requests at the endpoint, the known ones and those of others."""
        return self.requests + self.foreign

    @property
    def only_prefill(self) -> bool:
        """Whether the prefill before it is all that a request waits for, as far as fresh pages show."""
        return self.corrected and not self.queue_seconds

    def prefill_seconds(self, now: float) -> float:
        """The backlog at `now` in seconds: the wait of a request that arrives then, for whatever reason it waits."""
        return max(self.queue_seconds, self.busy_until - now)

    def prefill_tokens(self, now: float) -> float:
        """The prefill that is to be done at `now`, in tokens of uncached prompt."""
        backlog = self.busy_until - now
        return backlog * self.rate if backlog > 0 else 0.0


class Prefix(NamedTuple):
    """Prefix hits in tokens since the agent knows this server: `predicted` by the index, `measured` by the server.

    `measured` is None where the server does not report it. Both are counted from the same moment on.
    """

    predicted: float
    measured: float | None


class EndpointView(NamedTuple):
    """One endpoint in a snapshot. `values` are those of its last page, requested at `page_at`; `others` are readings of
    another time: from an older page, a load report or a request of their own. `fresh` gives a value that may be used.

    A page's values are kept as they are: dating each one would cost more than everything else that is done with the
    page, and few are read before the next one. `before` is the page against which rates are computed; `histograms` are
    those that were requested of the last page. `errors` are the failures of its recent requests; None: none that count.
    """

    address: str
    engine: str
    health: Health
    reason: str
    values: Mapping[str, Value]
    others: Mapping[str, Reading]
    page_at: float | None
    failures: int
    stale_after: float
    work: Work
    prefix: Prefix
    accelerators: tuple[Accelerators, ...] = ()
    before: Counters | None = None
    histograms: Mapping[str, Histogram | None] = NO_HISTOGRAMS
    errors: Errors | None = None
    identity: Identity = UNIDENTIFIED

    @property
    def readings(self) -> dict[str, Reading]:
        """Every reading, however old."""
        at = self.page_at
        return {
            **self.others,
            **({} if at is None else {name: Reading(value, at) for name, value in self.values.items()}),
        }

    def reading(self, signal: str) -> Reading | None:
        """The signal's last reading, however old."""
        value = self.values.get(signal)
        if value is None or self.page_at is None:
            return self.others.get(signal)
        return Reading(value, self.page_at)

    def names(self, *signals: str) -> frozenset[str]:
        """The names that these signals' last readings hold, however old."""
        found: frozenset[str] = frozenset()
        for signal in signals:
            reading = self.reading(signal)
            if reading is not None and isinstance(reading.value, frozenset):
                found |= reading.value
        return found

    def fresh(self, signal: str, now: float) -> Value | None:
        """The signal's value if its reading is fresh, else None: an unknown value is never a number. Of a blind
        endpoint no reading is fresh."""
        if self.health is _BLIND:
            return None
        value, at = self.values.get(signal), self.page_at
        if value is None or at is None:
            other = self.others.get(signal)
            if other is None:
                return None
            value, at = other
        return value if is_fresh(at, self.stale_after, now) else None

    def number(self, signal: str, now: float) -> float | None:
        """As `fresh`, for signals that are numbers."""
        value = self.fresh(signal, now)
        return None if value is None or isinstance(value, frozenset) else value


class Snapshot(NamedTuple):
    """One pool at `at` (monotonic seconds). Endpoints are sorted by address. `version` grows with every change.

    Summaries, so that a pick need not read each endpoint: `adapters` are the LoRA adapters that any endpoint's last
    page names (None: not summarised), `models_everywhere` the models that every endpoint lists. `picked_addresses` are
    the addresses of the endpoints where every endpoint is in a state that is picked, else empty. `addresses` are those
    of all endpoints, in their order; empty in a snapshot that no store made. `has_errors`: some endpoint's `errors` may
    not be None. `only_prefill`: a request waits for prefill only, at every endpoint. `source` is where the endpoints
    come from, None where the configuration lists them.
    """

    pool: str
    version: int
    at: float
    good_until: float
    endpoints: tuple[EndpointView, ...]
    adapters: frozenset[str] | None = None
    models_everywhere: frozenset[str] = frozenset()
    picked_addresses: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    has_errors: bool = True
    only_prefill: bool = False
    source: SourceStatus | None = None
