"""The default: the endpoint where this request costs least, its own wait and the wait that it causes to others.

    cost = w + (1 + kappa * W) * u + e * n

`w` is the seconds of uncached prefill that stand before the request there, `u` the seconds that the request itself
adds, `W` the mean of `w` over the candidates, `kappa` a price per second. On an idle fleet (W = 0) it is the plain
least time to first token; the busier the fleet, the more it is worth to save work, which is what a warm cache does.
`n` requests of ours in flight there cost `e` seconds each: decoding shares the server's steps with prefill, and of two
endpoints that cost the same the one with fewer requests is the better. It is small, so that it decides little else.
Source: the "congestion-priced cost" of the project's field notes, found by simulation on the Mooncake traces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from agent.pick.candidates import Candidates
from agent.pick.parameters import number, only
from agent.pick.scoring import Columns

KAPPA_PER_SECOND: Final = 2.0
# About one step of a full batch. From 1 to 20 ms made no difference on the Mooncake replay (`make bench-routing`).
SECONDS_PER_REQUEST: Final = 0.005


class LeastCost:
    """1 / (1 + seconds dearer than the cheapest candidate): one second dearer scores a half."""

    name = "least-cost-scorer"
    needs: frozenset[str] = frozenset()

    def __init__(self, parameters: Mapping[str, object]) -> None:
        only(parameters, "kappaPerSecond", "secondsPerRequest")
        self.each_seconds = number(parameters, "secondsPerRequest", SECONDS_PER_REQUEST, low=0.0, high=3600.0)
        self.kappa = number(parameters, "kappaPerSecond", KAPPA_PER_SECOND, low=0.0, high=1e6)

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float]:
        """The score of each candidate's cost in seconds."""
        ahead = candidates.ahead_seconds
        price = 1.0 + self.kappa * sum(ahead) / len(ahead)
        each = self.each_seconds
        tokens, hits = candidates.request.prompt_tokens, candidates.hits
        costs = [
            wait + price * (tokens - hit) / rate + requests * each
            for wait, hit, (requests, _, rate, _, _) in zip(ahead, hits, candidates.works, strict=True)
        ]
        best = min(costs)
        return [1.0 / (1.0 + (cost - best)) for cost in costs]
