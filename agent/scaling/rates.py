"""The rates of an endpoint at an instant, or why there are none (`agent.state.rates` says what they are made of)."""

from __future__ import annotations

from agent.scaling.rollup import Sample, Unknown, number
from agent.state.rates import LEAST_SECONDS, RATES
from agent.state.snapshot import EndpointView


def rate(view: EndpointView, name: str, now: float) -> Sample | Unknown:
    """The rate of this name (KeyError for another) as of the endpoint's last page; a ratio is between 0 and 1.

    Unknown where its counters are not current; `too_few_pages` until two pages of this server, with all that the
    rate is made of, lie `LEAST_SECONDS` apart; `nothing_counted` for a ratio of nothing to nothing, which is not 0.
    """
    row = RATES[name]
    part = number(view, row.part, now)
    if isinstance(part, Unknown):
        return part
    before = view.before
    seconds = 0.0 if before is None else part.at - before.at
    if before is None or seconds < LEAST_SECONDS:
        return Unknown("too_few_pages")
    increase = _increase(part.value, before.value(row.part))
    if isinstance(increase, Unknown):
        return increase
    if row.whole is None:
        return Sample(increase / seconds, part.at)
    whole = number(view, row.whole, now)
    if isinstance(whole, Unknown):
        return whole
    if whole.at != part.at:  # the last page had one of the two only
        return Unknown("too_few_pages")
    of = _increase(whole.value, before.value(row.whole))
    if isinstance(of, Unknown):
        return of
    # Two counters of one page may have been written a moment apart.
    return Sample(min(1.0, increase / of), part.at) if of > 0 else Unknown("nothing_counted")


def _increase(value: float, before: float | None) -> float | Unknown:
    """How much a counter grew; unknown where it was not there before, or is another server's."""
    return Unknown("too_few_pages") if before is None or value < before else value - before
