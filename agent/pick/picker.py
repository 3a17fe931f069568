"""The decision for one request: filter the endpoints, score the candidates, take the highest weighted sum.

Pure: the same snapshot, index, request and `now` give the same pick. Ties are broken by a hash of the request's id:
equal endpoints share requests evenly, and a reader of the shared state makes the same choice.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from heapq import nlargest
from typing import Final, NamedTuple, Protocol

from agent.pick.candidates import Candidates, waits_of
from agent.pick.decision import ERRORS, HEALTH, MODEL, SUBSET, Narrowing, NoPick, Pick
from agent.pick.filters import serves_model
from agent.pick.profile import Profile
from agent.pick.request import PickRequest
from agent.pick.scoring import opinion
from agent.state.health import PICKED, Health
from agent.state.outliers import penalty
from agent.state.snapshot import EndpointView, Snapshot, Work

# Weighted sums closer than this are a tie: it is above the rounding of a sum of a few floats and below any real
# difference.
TIE: Final = 1e-9
_FAILING: Final = Health.FAILING


class PrefixLookup(Protocol):
    """The part of the prefix index that the picker reads."""

    def match(self, chain: Sequence[int], addresses: Sequence[str]) -> list[int]:
        """The number of leading blocks of the chain that each address holds."""
        ...

    def shared(self, chain: Sequence[int], depth: int) -> bool:
        """Whether other prompts continued the first `depth` blocks of the chain differently."""
        ...


class Ranking(NamedTuple):
    """The candidates for one request and the weighted sum of their scores, aligned with `addresses`. `scores` and
    `weights` are by scorer; `narrowed` are the filters that removed something; `best_hit_tokens` as in Pick."""

    candidates: Candidates
    addresses: Sequence[str]
    totals: list[float]
    scores: dict[str, Sequence[float]]
    weights: dict[str, float]
    narrowed: Sequence[Narrowing]
    best_hit_tokens: int


def pick(
    snapshot: Snapshot, request: PickRequest, profile: Profile, index: PrefixLookup, now: float, fallbacks: int = 0
) -> Pick | NoPick:
    """The endpoint for `request` by `profile` and at most `fallbacks` further ones, or why there is none."""
    ranking = rank(snapshot, request, profile, index, now)
    if isinstance(ranking, NoPick):
        return ranking
    candidates, addresses, totals, scores, weights, narrowed, best_hit_tokens = ranking
    place, decided_by = _best(candidates, totals, scores, weights)
    return Pick(
        request.request_id,
        candidates.views[place].address,
        _next_best(addresses, totals, place, fallbacks) if fallbacks else (),
        request.prompt_tokens,
        candidates.hits[place],
        best_hit_tokens,
        decided_by,
        addresses,
        totals,
        scores,
        snapshot.version,
        profile,
        narrowed,
        candidates.hits,
        candidates.backlog_seconds,
        candidates.prefill_seconds,
        candidates.works,
        candidates.shared,
    )


def redirected(pick: Pick, address: str, decided_by: str) -> Pick:
    """The pick with another one of its candidates as the endpoint, for a reason outside the profile. ValueError where
    the address is no candidate."""
    if address == pick.endpoint:
        return pick
    place = pick.addresses.index(address)
    fallbacks = _next_best(pick.addresses, pick.totals, place, len(pick.fallbacks))
    return pick._replace(endpoint=address, fallbacks=fallbacks, hit_tokens=pick.hits[place], decided_by=decided_by)


def rank(
    snapshot: Snapshot,
    request: PickRequest,
    profile: Profile,
    index: PrefixLookup,
    now: float,
    ahead: Mapping[str, float] | None = None,
) -> Ranking | NoPick:
    """The candidates of the pool for `request` and their totals by `profile`, or why there is none.

    `ahead` are seconds of prefill by address that are planned there before the request, beside those in flight.
    """
    narrowed: list[Narrowing] = []
    views: Sequence[EndpointView] = snapshot.endpoints
    addresses: Sequence[str] = snapshot.picked_addresses
    if not addresses:
        views = _admitted(views, request.subset, now)
        if not views:
            return _none_healthy(snapshot, request)
        addresses = [view.address for view in views]
        if len(views) != len(snapshot.endpoints):
            everything = snapshot.addresses or [view.address for view in snapshot.endpoints]
            narrowed.append(Narrowing(HEALTH, everything, addresses))
    subset = request.subset
    if subset is not None:
        views = [view for view in views if view.address in subset]
        if not views:
            return NoPick(
                request.request_id,
                "subset_empty",
                f"none of the {len(subset)} endpoints that the proxy allows can be picked in pool {snapshot.pool}",
            )
        if len(addresses) != len(views):
            allowed = [view.address for view in views]
            narrowed.append(Narrowing(SUBSET, addresses, allowed))
            addresses = allowed
    warmest, shared = 0, False
    if request.chain:
        size, limit = request.block_tokens, request.prompt_tokens
        depths = index.match(request.chain, addresses)
        hits = [known if (known := blocks * size) < limit else limit for blocks in depths]
        deepest = max(depths)
        warmest = min(deepest * size, limit)
        # A prefix that is less than half of the prompt decides nothing: the rest is prefilled wherever it goes.
        shared = 0 < len(request.chain) <= 2 * deepest and index.shared(request.chain, deepest)
    else:
        hits = [0] * len(views)
    waits = None
    if ahead is not None:
        works = [planned(view.work, ahead.get(view.address, 0.0), now) for view in views]
        waits = waits_of(works, now, only_prefill=snapshot.only_prefill)
    candidates = Candidates(
        request, now, views, hits, waits, adapters=snapshot.adapters, shared=shared, only_prefill=snapshot.only_prefill
    )
    if request.model not in snapshot.models_everywhere:
        places = serves_model(candidates)
        if len(places) != len(addresses):
            candidates, addresses = _narrow(candidates, addresses, places, MODEL, narrowed)
            warmest = max(candidates.hits)
    for name, keep in profile.filters:
        places = keep(candidates)
        if len(places) != len(addresses):
            candidates, addresses = _narrow(candidates, addresses, places, name, narrowed)
            if not candidates.views:
                detail = f"the filter {name} left no endpoint of pool {snapshot.pool}"
                return NoPick(request.request_id, "all_filtered", detail)
    totals: list[float] = []
    scores: dict[str, Sequence[float]] = {}
    weights: dict[str, float] = {}
    for scorer, weight in profile.scorers:
        opinions = opinion(scorer, candidates)
        if opinions is None:
            continue
        scores[scorer.name] = opinions
        weights[scorer.name] = weight
        if totals:
            totals = [total + weight * score for total, score in zip(totals, opinions, strict=True)]
        else:
            totals = list(opinions) if weight == 1.0 else [weight * score for score in opinions]
    totals = totals or [0.0] * len(candidates)
    if snapshot.has_errors:
        expected = [1.0 - penalty(view.errors, now) for view in candidates.views]
        if min(expected) < 1.0:
            weights[ERRORS] = weight = sum(weights.values()) or 1.0
            scores[ERRORS] = expected
            totals = [total + weight * score for total, score in zip(totals, expected, strict=True)]
    return Ranking(candidates, addresses, totals, scores, weights, narrowed, warmest)


def admitted_addresses(snapshot: Snapshot, now: float) -> Sequence[str]:
    """The addresses of the endpoints that a request without a subset may be picked for, whatever its model."""
    return snapshot.picked_addresses or [view.address for view in _admitted(snapshot.endpoints, None, now)]


def planned(work: Work, seconds: float, now: float) -> Work:
    """The work with so many more seconds of prefill before the next request."""
    return work._replace(busy_until=max(work.busy_until, now) + seconds) if seconds else work


def _admitted(views: Sequence[EndpointView], subset: frozenset[str] | None, now: float) -> Sequence[EndpointView]:
    """The endpoints whose health allows it, and the ejected ones whose trial is due. Where the proxy allows none of
    them, all ejected ones: a server that fails some requests is better than no server."""
    found = [view for view in views if view.health in PICKED or _trial_due(view, now)]
    if not found or (subset is not None and all(view.address not in subset for view in found)):
        ejected = [view for view in views if view.health is _FAILING]
        return found + [view for view in ejected if subset is None or view.address in subset]
    return found


def _trial_due(view: EndpointView, now: float) -> bool:
    errors = view.errors
    return view.health is _FAILING and errors is not None and errors.trial_at is not None and errors.trial_at <= now


def _narrow(
    candidates: Candidates, addresses: Sequence[str], places: Sequence[int], name: str, narrowed: list[Narrowing]
) -> tuple[Candidates, Sequence[str]]:
    """The candidates that the filter `name` left, and their addresses; `narrowed` gets the record of it."""
    left = [addresses[place] for place in places]
    narrowed.append(Narrowing(name, addresses, left))
    return candidates.keep(places), left


def _best(
    candidates: Candidates, totals: list[float], scores: dict[str, Sequence[float]], weights: dict[str, float]
) -> tuple[int, str]:
    """The winner's place and what decided."""
    if len(totals) == 1:
        return 0, "only_candidate"
    top = max(totals)
    place = totals.index(top)
    others = totals[:place] + totals[place + 1 :]
    second = max(others)
    if second >= top - TIE:
        tied = [place for place, total in enumerate(totals) if total >= top - TIE]
        return tied[zlib.crc32(candidates.request.request_id.encode()) % len(tied)], "tie"
    runner_up = others.index(second)
    runner_up += runner_up >= place
    decided_by = max(scores, key=lambda name: weights[name] * (scores[name][place] - scores[name][runner_up]))
    return place, decided_by


def _next_best(addresses: Sequence[str], totals: Sequence[float], place: int, count: int) -> tuple[str, ...]:
    """The addresses of the best `count` candidates after the one at `place`, the best first."""
    others = [other for other in range(len(totals)) if other != place]
    return tuple(addresses[other] for other in nlargest(count, others, key=totals.__getitem__))


def _none_healthy(snapshot: Snapshot, request: PickRequest) -> NoPick:
    if not snapshot.endpoints:
        return NoPick(request.request_id, "no_endpoints", f"pool {snapshot.pool} has no endpoints")
    counts: dict[str, int] = {}
    for view in snapshot.endpoints:
        counts[view.health] = counts.get(view.health, 0) + 1
    found = ", ".join(f"{count} {health}" for health, count in sorted(counts.items()))
    detail = f"none of the endpoints of pool {snapshot.pool} can be picked: {found}"
    return NoPick(request.request_id, "none_healthy", detail)
