"""The result of a pick, and its explanation.

A pick keeps references to the columns that decided, so that keeping it costs nothing; `explain` computes the rest when
it is wanted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from agent.pick.profile import Profile
from agent.pick.scorers.least_cost import CostParts, LeastCost
from agent.state.snapshot import Work

# The filters that no profile can switch off, in the order in which they are applied, before those of the profile.
HEALTH: Final = "health"
SUBSET: Final = "subset"
MODEL: Final = "model"
# The score that every profile gets while requests of a candidate fail: the expected share of its responses that do not.
# Its weight is the sum of the weights of the profile's scorers.
ERRORS: Final = "error-rate"


class Narrowing(NamedTuple):
    """One filter that removed something: the addresses before it and after it."""

    filter: str
    before: Sequence[str]
    after: Sequence[str]


class Pick(NamedTuple):
    """The endpoint for one request and why.

    `fallbacks` are the next best candidates, the best first: where the proxy may send the request when it cannot reach
    `endpoint`. The request counts as in flight at `endpoint` even then, because the proxy does not report it. Empty
    unless requested.
    `addresses` are the candidates, in the order of every list in `scores` (scorer name -> one score per candidate) and
    of `totals` (the weighted sums). `decided_by` is `only_candidate`, `tie`, the scorer whose weighted score separates
    the winner most from the runner-up, or `room` where an endpoint with a better total had no room. `hit_tokens` is the
    prefix hit that the index predicts at `endpoint`, `best_hit_tokens` the largest that it predicts at any candidate.
    `shared_prefix`: other prompts begin with the prefix of that hit too. `version` is that of the snapshot.
    `waited_seconds` is how long the request was held, and `dispatched` why it went then: a reason of
    `agent.flow.outcomes`, empty where it was not held.

    The other fields are for `explain`: the profile, the filters that removed something, and the candidates' predicted
    hits, backlogs, prefill before the request (both in seconds) and work as the scorers saw them.
    """

    request_id: str
    endpoint: str
    fallbacks: tuple[str, ...]
    prompt_tokens: int
    hit_tokens: int
    best_hit_tokens: int
    decided_by: str
    addresses: Sequence[str]
    totals: Sequence[float]
    scores: dict[str, Sequence[float]]
    version: int
    profile: Profile | None = None
    narrowed: Sequence[Narrowing] = ()
    hits: Sequence[int] = ()
    backlog_seconds: Sequence[float] = ()
    prefill_seconds: Sequence[float] = ()
    works: Sequence[Work] = ()
    shared_prefix: bool = False
    waited_seconds: float = 0.0
    dispatched: str = ""

    @property
    def uncached_tokens(self) -> int:
        """Prompt tokens that the endpoint has to prefill, by the index's prediction; at least one."""
        return max(1, self.prompt_tokens - self.hit_tokens)

    @property
    def left_warmest(self) -> bool:
        """True when another candidate had more of this prompt in its cache."""
        return self.hit_tokens < self.best_hit_tokens


class NoPick(NamedTuple):
    """Why there is no endpoint: `reason` is one word for a label, `detail` a sentence for a person.

    Reasons: `no_endpoints` (the pool is empty), `none_healthy` (none is in a state that is picked; `detail` counts
    them by health), `subset_empty` (the proxy's subset holds no such endpoint of the pool), `all_filtered` (a filter
    removed all candidates).
    """

    request_id: str
    reason: str
    detail: str


class FilterResult(NamedTuple):
    """One filter that was applied, and the addresses that it removed."""

    name: str
    removed: tuple[str, ...]


class CandidateResult(NamedTuple):
    """One candidate: its weighted sum, its score by scorer, its predicted hit (tokens; None: not recorded), and the
    parts of its cost where the profile has the least-cost scorer."""

    address: str
    total: float
    scores: Mapping[str, float]
    hit_tokens: int | None
    cost: CostParts | None


class Explanation(NamedTuple):
    """Why a pick went where it went.

    `filters` are all that were applied, in order, those that removed nothing included. `weights` has the weight of each
    scorer that gave scores. `candidates` begin with the picked one; the others follow by falling total.
    """

    filters: tuple[FilterResult, ...]
    weights: Mapping[str, float]
    candidates: tuple[CandidateResult, ...]


def explain(pick: Pick) -> Explanation:
    """The filters, weights and candidates behind a pick."""
    profile = pick.profile
    weights: dict[str, float] = {}
    costs: Sequence[CostParts] = ()
    if profile is not None:
        weights = {scorer.name: weight for scorer, weight in profile.scorers if scorer.name in pick.scores}
        if ERRORS in pick.scores:
            weights[ERRORS] = sum(weights.values()) or 1.0
        scorer = next((each.scorer for each in profile.scorers if isinstance(each.scorer, LeastCost)), None)
        if scorer is not None and pick.works:
            prices = scorer.prices(pick.prefill_seconds, shared=pick.shared_prefix)
            costs = scorer.parts(pick.prompt_tokens, pick.hits, pick.backlog_seconds, prices, pick.works)
    candidates = [
        CandidateResult(
            address,
            pick.totals[place],
            {name: scores[place] for name, scores in pick.scores.items()},
            pick.hits[place] if pick.hits else None,
            costs[place] if costs else None,
        )
        for place, address in enumerate(pick.addresses)
    ]
    candidates.sort(key=lambda each: (each.address != pick.endpoint, -each.total))
    return Explanation(tuple(_filters(profile, pick.narrowed)), weights, tuple(candidates))


def _filters(profile: Profile | None, narrowed: Sequence[Narrowing]) -> list[FilterResult]:
    names = [HEALTH, SUBSET, MODEL, *(name for name, _ in profile.filters)] if profile is not None else []
    removed: dict[str, tuple[str, ...]] = dict.fromkeys(names, ())
    for narrowing in narrowed:
        left = frozenset(narrowing.after)
        gone = tuple(address for address in narrowing.before if address not in left)
        removed[narrowing.filter] = (*removed.get(narrowing.filter, ()), *gone)
    return [FilterResult(name, addresses) for name, addresses in removed.items()]
