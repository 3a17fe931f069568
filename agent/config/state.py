"""`state`: how long readings are valid."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import Scope, option
from agent.config.scrape import STALE_AFTER_INTERVALS
from agent.config.values import Duration

_MIN_STALE_AFTER = 3.0


def _stale_after(scope: Scope) -> float:
    interval: float = scope.around["scrape"].interval
    return max(_MIN_STALE_AFTER, STALE_AFTER_INTERVALS * interval)


@dataclass(frozen=True, slots=True)
class StateConfig:
    """The routing state."""

    stale_after: float = option(
        Duration(0.1, 3600),
        "a reading of this age is withheld, and an endpoint without a younger page or answer gets no requests",
        _MIN_STALE_AFTER,
        default_from=_stale_after,
        default_text="`3s`, or three times `scrape.interval` if that is longer",
    )
