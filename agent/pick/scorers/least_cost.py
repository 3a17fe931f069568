"""The default: the endpoint where this request costs least, the delay that it causes to later requests included.

    cost = w + (1 + kappa * W) * u + e * n + d * f

`w` is the wait at the endpoint: seconds of uncached prefill before this request or, where something else delays the
queue, the time in which the queue drains. `u` is the seconds of prefill that this request adds, and `kappa` a price per
second of `W`. On an idle fleet (W = 0) the endpoint with the least time to first token is the cheapest; the busier the
fleet, the more saved work counts, and a warm cache saves work. `n` of the agent's requests in flight there cost `e`
seconds each, because decoding shares the server's steps with prefill. `e` is small: it decides between endpoints of
about equal cost. `f` requests of others cost `d` each: of those that run, how much prefill is left is unknown.

`W` is the mean of the prefill before this request over the candidates. Where half of the prompt or more is a prefix
that many prompts begin with, it is the prefill at the endpoint itself. The mean keeps a conversation at the server that
has its cache: elsewhere the work is lost for the fleet. A shared prefix serves later prompts wherever it is prefilled,
so its work is priced by the delay at that place, and a busy server gives it away before its queue is long. A queue that
prefill does not explain is no part of `W`: saved prefill does not shorten it.
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
# Half of the prefill of 1,000 tokens, the prior of `agent.state.inflight`, at 15,928 tokens per second, the prior of
# `agent.state.prefill_rate`: 31 ms. So a batch full of requests of others costs more than a burst of short ones, even
# where no page has shown yet that it is full.
SECONDS_PER_FOREIGN_REQUEST: Final = 0.03


class CostParts(NamedTuple):
    """The parts of one candidate's cost: `w`, `u`, `n` and `f` of the formula, and the cost itself in seconds."""

    w_seconds: float
    u_seconds: float
    n_requests: int
    f_requests: float
    cost_seconds: float


class LeastCost:
    """1 / (1 + seconds above the cheapest candidate): one second above scores a half."""

    name = "least-cost-scorer"
    needs: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters, "kappaPerSecond", "secondsPerForeignRequest", "secondsPerRequest")
        self.foreign_seconds = number(
            parameters, "secondsPerForeignRequest", SECONDS_PER_FOREIGN_REQUEST, low=0.0, high=3600.0
        )
        self.each_seconds = number(parameters, "secondsPerRequest", SECONDS_PER_REQUEST, low=0.0, high=3600.0)
        self.kappa = number(parameters, "kappaPerSecond", KAPPA_PER_SECOND, low=0.0, high=1e6)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """The score of each candidate's cost in seconds."""
        each, foreign = self.each_seconds, self.foreign_seconds
        tokens, hits, backlog = candidates.request.prompt_tokens, candidates.hits, candidates.backlog_seconds
        # The formula of `parts`, written out: this runs for each endpoint at each pick. Fields of the work by index:
        # `requests` is 0, `rate` is 2, `foreign` is 5.
        if not candidates.shared:
            price = 1.0 + self.kappa * sum(candidates.prefill_seconds) / len(backlog)
            costs = [
                wait + price * (tokens - hit) / work[2] + work[0] * each + work[5] * foreign
                for wait, hit, work in zip(backlog, hits, candidates.works, strict=True)
            ]
        else:
            kappa = self.kappa
            costs = [
                wait + (1.0 + kappa * prefill) * (tokens - hit) / work[2] + work[0] * each + work[5] * foreign
                for wait, prefill, hit, work in zip(
                    backlog, candidates.prefill_seconds, hits, candidates.works, strict=True
                )
            ]
        best = min(costs)
        return [1.0 / (1.0 + (cost - best)) for cost in costs]

    def prices(self, prefill_seconds: Sequence[float], *, shared: bool) -> list[float]:
        """The price of a second of `u` at each candidate, by the seconds of prefill before this request there."""
        if shared:
            return [1.0 + self.kappa * seconds for seconds in prefill_seconds]
        return [1.0 + self.kappa * sum(prefill_seconds) / len(prefill_seconds)] * len(prefill_seconds)

    def parts(
        self,
        prompt_tokens: int,
        hits: Sequence[int],
        backlog_seconds: Sequence[float],
        prices: Sequence[float],
        works: Sequence[Work],
    ) -> list[CostParts]:
        """What `score` computes, by its parts, for candidates with these predicted hits, waits, prices and work."""
        found: list[CostParts] = []
        for wait, price, hit, work in zip(backlog_seconds, prices, hits, works, strict=True):
            added = (prompt_tokens - hit) / work.rate
            cost = wait + price * added + work.requests * self.each_seconds + work.foreign * self.foreign_seconds
            found.append(CostParts(wait, added, work.requests, work.foreign, cost))
        return found
