"""How many requests a server runs at once, as its pages show it.

Few servers report the size of their batch. A page shows it where requests wait although the server has never run more
than it does now; a server that ran more before waits for something else. Where that happens twice at the same number,
it is the size also while nothing waits, until the server runs more. Once is not enough: a request that arrived during
a step waits for the end of the step, whatever the number of running requests.
"""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = float("inf")

# The reference calls a server saturated from five waiting requests on, or from this KV usage on (`queueDepthThreshold`
# and `kvCacheUtilThreshold` of its saturation detector). Fewer may wait for the end of a step, with free slots.
SATURATED_WAITING: Final = 5.0
SATURATED_KV_USAGE: Final = 0.8


class BatchSize:
    """The batch of one endpoint. `observe` takes each page, in order of time."""

    __slots__ = ("_beside_queue", "_times", "largest")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start over: another server responds now."""
        self.largest = 0.0  # running requests on any page
        self._beside_queue = 0.0  # the same on pages with waiting requests
        self._times = 0  # pages with waiting requests that had this number

    def shown(self) -> tuple[float, float, int]:
        """What the pages have shown, for `adopt`."""
        return self.largest, self._beside_queue, self._times

    def adopt(self, largest: float, beside_queue: float, times: int) -> None:
        """Add what pages of the same server have shown to another observer."""
        self.largest = max(self.largest, largest)
        if beside_queue > self._beside_queue:
            self._beside_queue, self._times = beside_queue, times
        elif beside_queue == self._beside_queue:
            self._times = max(self._times, times)

    def observe(
        self, running: float | None, waiting: float, kv_usage: float | None, slots_usage: float | None
    ) -> float:
        """Record one page, None where a value is unknown; returns how many more requests the server schedules at once
        before the next one waits, `UNKNOWN` where nothing shows it.

        An unknown value never makes the result larger: a queue beside an unknown number of running requests is one
        behind a full batch.
        """
        if running is None:
            return 0.0 if waiting > 0 or (slots_usage is not None and slots_usage >= 1) else UNKNOWN
        self.largest = max(self.largest, running)
        if waiting > 0:
            if running > self._beside_queue:
                self._beside_queue, self._times = running, 1
            elif running == self._beside_queue:
                self._times += 1
            if waiting >= SATURATED_WAITING or (kv_usage is not None and kv_usage >= SATURATED_KV_USAGE):
                return 0.0
        if slots_usage is not None and slots_usage > 0:
            return running / slots_usage - running
        if waiting > 0 or (self._times > 1 and self._beside_queue >= self.largest):
            return self.largest - running
        return UNKNOWN
