"""The rates of an endpoint at an instant, or why there are none (defined in `agent.state.counter_rates`)."""

from __future__ import annotations

from agent.scaling.rollup import DatedValue, Unknown, number
from agent.state.counter_rates import MIN_SECONDS, RATES
from agent.state.snapshot import EndpointView


def rate(view: EndpointView, name: str, now: float) -> DatedValue | Unknown:
    """The rate of this name as of the endpoint's last page; a ratio is between 0 and 1. KeyError for an unknown name.

    Unknown where its counters are not current; `too_few_pages` until two pages of this server with all counters of the
    rate lie `MIN_SECONDS` apart; `nothing_counted` for a ratio over a counter that did not grow, which is not 0.
    """
    row = RATES[name]
    part = number(view, row.part, now)
    if isinstance(part, Unknown):
        return part
    before = view.before
    seconds = 0.0 if before is None else part.at - before.at
    if before is None or seconds < MIN_SECONDS:
        return Unknown("too_few_pages")
    increase = _increase(part.value, before.value(row.part))
    if isinstance(increase, Unknown):
        return increase
    if row.whole is None:
        return DatedValue(increase / seconds, part.at)
    whole = number(view, row.whole, now)
    if isinstance(whole, Unknown):
        return whole
    if whole.at != part.at:  # the last page had only one of the two
        return Unknown("too_few_pages")
    of = _increase(whole.value, before.value(row.whole))
    if isinstance(of, Unknown):
        return of
    # The server may write two counters of one page a moment apart, so the ratio could exceed 1.
    return DatedValue(min(1.0, increase / of), part.at) if of > 0 else Unknown("nothing_counted")


def _increase(value: float, before: float | None) -> float | Unknown:
    """The increase of a counter; unknown where the earlier page lacks it, or where it went back."""
    return Unknown("too_few_pages") if before is None or value < before else value - before
