"""`/v1/picks`: the last picks with their reasons, the newest first. A pick is encoded only when it is requested."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final, NamedTuple

from aiohttp import web

from agent.clock import Clock
from agent.pick.decision import CandidateResult, Pick, explain
from agent.scaling.gauges import age
from agent.serve.http.responses import HttpError, json_bytes
from agent.serve.http.server import HttpRoute
from agent.serve.state.api import check_pool
from agent.serve.state.documents import encode
from agent.serve.state.moment import printable, rfc3339
from agent.serve.state.schema import CandidateJson, CostJson, FilterJson, PickJson, PicksJson

PICKS_KEPT: Final = 256
PICKS_SHOWN: Final = 20
# Of all kept picks together: a candidate takes about 200 bytes, so that picks among 1,000 endpoints stay below 15 MB.
MAX_CANDIDATES: Final = 65_536


class RecentPick(NamedTuple):
    """A pick of a pool and its time (monotonic seconds)."""

    at: float
    pool: str
    pick: Pick


class RecentPicks:
    """The last `max_picks` picks, or fewer where they have more than `max_candidates` candidates. `pools` returns the
    names of the pools that exist."""

    def __init__(
        self,
        clock: Clock,
        pools: Callable[[], Sequence[str]],
        max_picks: int = PICKS_KEPT,
        max_candidates: int = MAX_CANDIDATES,
    ) -> None:
        self._clock = clock
        self._pools = pools
        self._max_picks = max_picks
        self._max_candidates = max_candidates
        self._candidates = 0
        self._picks: deque[RecentPick] = deque()

    def add(self, pool: str, pick: Pick, now: float) -> None:
        """Record a pick."""
        picks = self._picks
        picks.append(RecentPick(now, pool, pick))
        self._candidates += len(pick.addresses)
        while len(picks) > self._max_picks or (self._candidates > self._max_candidates and len(picks) > 1):
            self._candidates -= len(picks.popleft().pick.addresses)

    def routes(self) -> list[HttpRoute]:
        """The route."""
        return [HttpRoute("/v1/picks", self._answer, ("limit", "request_id", "pool"))]

    async def _answer(self, request: web.Request) -> web.Response:
        query = request.query
        limit = query.get("limit", str(PICKS_SHOWN))
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= PICKS_KEPT):
            message = f"limit is {limit[:64]!r}: write a number from 1 to {PICKS_KEPT}"
            raise HttpError(400, "bad_limit", message, param="limit")
        pool, request_id = query.get("pool"), query.get("request_id")
        check_pool(pool, self._pools())
        selected = (
            each
            for each in reversed(self._picks)
            if (pool is None or each.pool == pool)
            and (request_id is None or printable(each.pick.request_id) == request_id)
        )
        newest = list(islice(selected, int(limit)))
        now, wall = self._clock.now(), self._clock.wall()

        def encoded() -> bytes:
            return encode(PicksJson(rfc3339(wall), [_pick(each, age(each.at, now), wall) for each in newest]))

        return json_bytes(await asyncio.to_thread(encoded))


def _pick(recent: RecentPick, pick_age: float, wall: float) -> PickJson:
    pick = recent.pick
    explanation = explain(pick)
    return PickJson(
        recent.pool,
        printable(pick.request_id),
        rfc3339(wall - pick_age),
        pick_age,
        pick.endpoint,
        pick.decided_by,
        pick.left_warmest,
        pick.prompt_tokens,
        pick.hit_tokens,
        pick.best_hit_tokens,
        pick.shared_prefix,
        pick.waited_seconds,
        pick.dispatched,
        pick.version,
        [FilterJson(each.name, list(each.removed)) for each in explanation.filters],
        dict(explanation.weights),
        [_candidate(each) for each in explanation.candidates],
    )


def _candidate(found: CandidateResult) -> CandidateJson:
    cost = None if found.cost is None else CostJson(*found.cost)
    return CandidateJson(found.address, found.total, dict(found.scores), found.hit_tokens, cost)
