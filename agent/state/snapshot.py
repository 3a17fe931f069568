"""All endpoints of one pool at one instant: immutable, replaced whole by the one writer (`agent.state.store`).

Nothing here is ever changed after it was made, so a reader may keep a snapshot as long as it likes. It knows until
when it is good: past `good_until` some reading in it has gone stale or some health has changed, and it must be retaken.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from agent.accelerators.combine import Accelerators
from agent.engines.mapping import NONE_ASKED
from agent.signals import Histogram, Reading, Value
from agent.state.health import Health
from agent.state.rates import Counters


class Work(NamedTuple):
    """The picker's own work at one endpoint.

    `requests` in flight; `busy_until` (monotonic seconds): when a request that comes now is estimated to have its turn,
    which is when all prefill given to the server is done at `rate` tokens of uncached prompt a second, or, where
    something else holds its queue up, when that queue is through; `rate_source` says where the rate comes from:
    `configured`, `learnt`, `pool` (the median of the learnt ones beside it) or `default`. The work ahead shrinks as
    time passes, so it is a function of `now` and not a field. `corrected`: a fresh page's queue has corrected the
    estimate; without one it knows nothing of what others gave to this server.
    """

    requests: int
    busy_until: float
    rate: float
    rate_source: str
    corrected: bool = True

    def prefill_seconds(self, now: float) -> float:
        """Seconds of uncached prefill still ahead there at `now`; 0 when its first tokens are all out."""
        ahead = self.busy_until - now
        return ahead if ahead > 0 else 0.0

    def prefill_tokens(self, now: float) -> float:
        """The same in tokens of uncached prompt."""
        return self.prefill_seconds(now) * self.rate


class Prefix(NamedTuple):
    """Prefix hits in tokens since the agent knows this server: what the index predicted and what the server counted.

    `measured` is None where the server does not say; both are counted from the same moment on.
    """

    predicted: float
    measured: float | None


class EndpointView(NamedTuple):
    """One endpoint in a snapshot. `values` are those of its last page, asked for at `page_at`; `others` are readings
    that came otherwise: with an older page, or with a request of their own. Fresh or not: ask `fresh`.

    A page's values are kept as they came: to date each one by itself would cost more than all else that is done with
    the page, and few of them are read before the next. `before` is the page that rates look back on,
    `histograms` are those that the last page was asked for.
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
    histograms: Mapping[str, Histogram | None] = NONE_ASKED

    @property
    def readings(self) -> dict[str, Reading]:
        """Every reading."""
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
        """The signal's value if its reading is younger than `stale_after`, else None: never a number for unknown."""
        value, at = self.values.get(signal), self.page_at
        if value is None or at is None:
            other = self.others.get(signal)
            if other is None:
                return None
            value, at = other
        return value if now - at < self.stale_after else None

    def number(self, signal: str, now: float) -> float | None:
        """Like `fresh`, for signals that are numbers."""
        value = self.fresh(signal, now)
        return None if value is None or isinstance(value, frozenset) else value


class Snapshot(NamedTuple):
    """One pool at `at` (monotonic seconds). Endpoints are sorted by address. `version` grows with every change.

    Facts about all of them, so that a pick need not look at each: `adapters` are the LoRA adapters that any endpoint's
    last page names (None: not gathered), `models_everywhere` the models that every endpoint lists. `healthy_addresses`
    are the endpoints' addresses where every one of them is healthy, else empty. `addresses` are those of all endpoints,
    in their order. Each may be left empty in a snapshot that no store made.
    """

    pool: str
    version: int
    at: float
    good_until: float
    endpoints: tuple[EndpointView, ...]
    adapters: frozenset[str] | None = None
    models_everywhere: frozenset[str] = frozenset()
    healthy_addresses: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
