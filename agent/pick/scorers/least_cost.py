"""The default: the endpoint where this request costs least, the delay that it causes to later requests included.

    cost = w + (1 + kappa * W) * u + e * n

`w` is the backlog at the endpoint: seconds of uncached prefill before this request. `u` is the seconds of prefill that
this request adds. `W` is the mean of `w` over the candidates and `kappa` a price per second. On an idle fleet (W = 0)
the endpoint with the least time to first token is the cheapest; the busier the fleet, the more saved work counts, and a
warm cache saves work. `n` of the agent's requests in flight there cost `e` seconds each, because decoding shares the
server's steps with prefill. `e` is small: it decides between endpoints of about equal cost.
Source: the "congestion-priced cost" of the project's field notes, found by simulation on the Mooncake traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from agent.pick.candidates import Candidates
from agent.pick.parameters import number, only
from agent.pick.scoring import Columns
from agent.state.snapshot import Work

KAPPA_PER_SECOND: Final = 2.0
# About one step of a full batch. From 1 to 20 ms made no difference on the Mooncake replay (`make bench-routing`).
SECONDS_PER_REQUEST: Final = 0.005


class CostParts(NamedTuple):
    """The parts of one candidate's cost: `w`, `u` and `n` of the formula, and the cost itself in seconds."""

    w_seconds: float
    u_seconds: float
    n_requests: int
    cost_seconds: float


class LeastCost:
    """1 / (1 + seconds above the cheapest candidate): one second above scores a half."""

    name = "least-cost-scorer"
    needs: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters, "kappaPerSecond", "secondsPerRequest")
        self.each_seconds = number(parameters, "secondsPerRequest", SECONDS_PER_REQUEST, low=0.0, high=3600.0)
        self.kappa = number(parameters, "kappaPerSecond", KAPPA_PER_SECOND, low=0.0, high=1e6)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """The score of each candidate's cost in seconds."""
        backlog = candidates.backlog_seconds
        price = 1.0 + self.kappa * sum(backlog) / len(backlog)
        each = self.each_seconds
        tokens, hits = candidates.request.prompt_tokens, candidates.hits
        # The formula of `parts`, written out: this runs for each endpoint at each pick.
        costs = [
            wait + price * (tokens - hit) / rate + requests * each
            for wait, hit, (requests, _, rate, _, _) in zip(backlog, hits, candidates.works, strict=True)
        ]
        best = min(costs)
        return [1.0 / (1.0 + (cost - best)) for cost in costs]

    def parts(
        self, prompt_tokens: int, hits: Sequence[int], backlog_seconds: Sequence[float], works: Sequence[Work]
    ) -> list[CostParts]:
        """What `score` computes, by its parts, for candidates with these predicted hits, backlogs and work."""
        price = 1.0 + self.kappa * sum(backlog_seconds) / len(backlog_seconds)
        found: list[CostParts] = []
        for wait, hit, work in zip(backlog_seconds, hits, works, strict=True):
            own = (prompt_tokens - hit) / work.rate
            cost = wait + price * own + work.requests * self.each_seconds
            found.append(CostParts(wait, own, work.requests, cost))
        return found
