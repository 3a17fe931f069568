"""The envelope of a capacity that one replica of the agent has learnt, and the one number of those of all replicas.

Each replica learns from the same pages, but not over the same time: one starts later, or does not reach the servers for
a while. The number of a pool follows from the envelopes of all replicas, so that each of them publishes the same. It is
the largest of them. An older one has missed what the newest has seen since: it counts as if it had fallen towards the
newest for that time, with the half-life of an envelope.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

FALL_SECONDS: Final = 600.0  # the half-life


class Envelope(NamedTuple):
    """Requests per second of one replica of a pool, and when that was last learnt (monotonic seconds)."""

    value: float
    at: float

    def fallen(self, sample: float, seconds: float) -> float:
        """The value after so many seconds in which a smaller `sample` was measured."""
        return sample + (self.value - sample) * float(0.5 ** (max(0.0, seconds) / FALL_SECONDS))


def largest(envelopes: Iterable[Envelope]) -> Envelope | None:
    """The one of several, whatever their order, as old as the newest; None of none."""
    found = list(envelopes)
    if not found:
        return None
    newest = max(found, key=lambda each: (each.at, each.value))
    older = (each.fallen(newest.value, newest.at - each.at) for each in found if each.value > newest.value)
    return Envelope(max(older, default=newest.value), newest.at)
