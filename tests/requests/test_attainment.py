"""A response meets its objectives, misses them, or nothing is known: never taken for met."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.events.exchange import NO_SLO, NO_USAGE, Exchange, Slo, TokenUsage
from agent.requests.attainment import MET, MISSED, NOT_MEASURED, attainment, refusal, time_per_token
from agent.requests.response import RESULTS

STREAM = Exchange(2.0, 0.5, 1.5, 10, 10, True, TokenUsage(10, 11))
BOTH = Slo(0.5, 0.1)


@pytest.mark.parametrize(
    ("slo", "exchange", "expected"),
    [
        (BOTH, STREAM, {"ttft": MET, "tpot": MET}),  # ten tokens in a second, after the first one at half a second
        (Slo(0.49, 0.099), STREAM, {"ttft": MISSED, "tpot": MISSED}),
        (Slo(ttft=0.5), STREAM, {"ttft": MET}),
        (Slo(tpot=0.05), STREAM, {"tpot": MISSED}),
        (BOTH, STREAM._replace(usage=NO_USAGE), {"ttft": MET, "tpot": NOT_MEASURED}),
        (BOTH, STREAM._replace(usage=TokenUsage(10, 1)), {"ttft": MET, "tpot": MET}),
        (BOTH, STREAM._replace(streamed=False), {"ttft": MET, "tpot": NOT_MEASURED}),
        (BOTH, STREAM._replace(first_token=None), {"ttft": NOT_MEASURED, "tpot": NOT_MEASURED}),
        (BOTH, None, {"ttft": NOT_MEASURED, "tpot": NOT_MEASURED}),
        (NO_SLO, STREAM, {}),
    ],
)
def test_a_response_is_compared_with_what_was_wanted(
    slo: Slo, exchange: Exchange | None, expected: dict[str, str]
) -> None:
    assert attainment(slo, "ok", exchange) == expected


@pytest.mark.parametrize("result", RESULTS)
def test_a_failure_of_the_service_misses_and_one_of_the_client_says_nothing(result: str) -> None:
    found = attainment(BOTH, result, STREAM)
    if result in ("client_left", "client_error", "cut", "unsupported"):
        assert found == {}
    elif result == "ok":
        assert found == {"ttft": MET, "tpot": MET}
    else:
        assert found == {"ttft": MISSED, "tpot": MISSED}


def test_a_refusal_of_the_agent_misses_the_objectives_that_there_are() -> None:
    assert refusal(BOTH) == {"ttft": MISSED, "tpot": MISSED}
    assert refusal(Slo(tpot=1.0)) == {"tpot": MISSED}
    assert refusal(NO_SLO) == {}


@given(st.floats(0.001, 100), st.floats(0, 1000), st.integers(0, 10_000), st.floats(0.001, 1))
def test_a_slower_response_never_does_better(first: float, more: float, tokens: int, wanted: float) -> None:
    usage = TokenUsage(1, tokens)
    fast = Exchange(first + more, first, first + more / 2, 1, 1, True, usage)
    slow = Exchange(first + 2 * more, first, first + more, 1, 1, True, usage)
    assert (time_per_token(fast) or 0.0) <= (time_per_token(slow) or 0.0)
    order = [MISSED, MET]
    results = [attainment(Slo(wanted, wanted), "ok", each)["tpot"] for each in (slow, fast)]
    assert order.index(results[0]) <= order.index(results[1])
