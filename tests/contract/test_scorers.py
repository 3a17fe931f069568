"""The contract of every registered scorer; a new one is tested without a test of its own."""

from __future__ import annotations

import copy
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators.combine import Accelerators, DeviceSet, combine
from agent.accelerators.device import Device
from agent.accelerators.table import COMBINED
from agent.pick.candidates import Candidates
from agent.pick.request import PickRequest
from agent.pick.scorers import SCORERS, scorer
from agent.pick.scoring import opinion
from agent.signals import KV_USAGE, LORA_MAX, LORA_RUNNING, LORA_WAITING, RUNNING, SIGNALS, WAITING, Value
from agent.state.snapshot import EndpointView
from tests.fakes.views import view

EVERY_SCORER = pytest.mark.parametrize("name", sorted(SCORERS))


@st.composite
def accelerators(draw: st.DrawFn) -> tuple[Accelerators, ...]:
    """The accelerators of an endpoint from up to two sources, fresh or stale."""
    return tuple(
        combine(
            "dcgm",
            "x:1",
            DeviceSet(
                [Device("0", "0", {signal: draw(st.floats(0, 1)) for signal in COMBINED if draw(st.booleans())})]
            ),
            draw(st.sampled_from([0.0, -100.0])),
            15.0,
            picked_on=draw(st.booleans()),
        )
        for _ in range(draw(st.integers(0, 2)))
    )


@st.composite
def candidates(draw: st.DrawFn) -> Candidates:
    """One to six endpoints in any state, and any request."""
    views: list[EndpointView] = []
    hits: list[int] = []
    for i in range(draw(st.integers(1, 6))):
        values: dict[str, Value] = {}
        for signal, high in ((WAITING, 1e7), (RUNNING, 1e7), (KV_USAGE, 1.0)):
            if draw(st.integers(0, 3)):
                values[signal] = draw(st.floats(0, high))
        if draw(st.booleans()):
            values[LORA_MAX] = float(draw(st.integers(0, 3)))
            values[LORA_RUNNING] = frozenset(draw(st.sets(st.sampled_from("mxyz"), max_size=3)))
            values[LORA_WAITING] = frozenset(draw(st.sets(st.sampled_from("mxyz"), max_size=3)))
        views.append(
            view(
                f"e{i}:1",
                values,
                backlog_seconds=draw(st.floats(0, 1e5)),
                rate=draw(st.floats(1e-3, 1e7)),
                requests=draw(st.integers(0, 500)),
                corrected=draw(st.booleans()),
                foreign=draw(st.floats(0, 500)),
                queue_seconds=draw(st.sampled_from([0.0, 0.5, 1e4])),
            )._replace(accelerators=draw(accelerators()))
        )
        hits.append(draw(st.integers(0, 1 << 20)))
    tokens = draw(st.integers(0, 1 << 20))
    return Candidates(PickRequest("r", "m", tokens), 0.0, views, [min(hit, tokens) for hit in hits])


@EVERY_SCORER
def test_a_scorer_is_named_as_it_is_registered_and_needs_known_signals(name: str) -> None:
    made = scorer(name, {})
    assert made.name == name
    assert made.needs <= SIGNALS.keys() | COMBINED.keys()


@EVERY_SCORER
@given(candidates=candidates())
def test_scores_are_finite_aligned_and_from_0_to_1(name: str, candidates: Candidates) -> None:
    scores = opinion(scorer(name, {}), candidates)
    if scores is not None:
        assert len(scores) == len(candidates)
        assert all(math.isfinite(score) and 0.0 <= score <= 1.0 for score in scores)


@EVERY_SCORER
@given(candidates=candidates(), data=st.data())
def test_the_order_of_the_candidates_does_not_matter(name: str, candidates: Candidates, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(candidates))))
    shuffled = Candidates(
        candidates.request, 0.0, [candidates.views[i] for i in order], [candidates.hits[i] for i in order]
    )
    before, after = opinion(scorer(name, {}), candidates), opinion(scorer(name, {}), shuffled)
    if before is None:
        assert after is None
    else:
        assert after == pytest.approx([before[i] for i in order], rel=1e-9, abs=1e-9)


@EVERY_SCORER
@given(candidates=candidates())
def test_a_scorer_is_deterministic_and_does_not_change_the_candidates(name: str, candidates: Candidates) -> None:
    made = scorer(name, {})
    views, hits, backlog = list(candidates.views), list(candidates.hits), copy.copy(candidates.backlog_seconds)
    first = opinion(made, candidates)
    assert opinion(made, candidates) == first
    assert (list(candidates.views), list(candidates.hits), candidates.backlog_seconds) == (views, hits, backlog)


@EVERY_SCORER
@given(candidates=candidates(), seen=st.booleans())
def test_losing_a_signal_never_raises_a_score(name: str, candidates: Candidates, seen: bool) -> None:
    """Among seen candidates. One that is unseen then counts by the agent's requests there: here as many as any has, and
    no hits, because the estimated load of an unseen candidate raises the price of uncached tokens for all."""
    made = scorer(name, {})
    hits = candidates.hits if seen else [0] * len(candidates)
    first, *others = (view._replace(work=view.work._replace(corrected=True)) for view in candidates.views)
    if not seen:
        requests = max(view.work.requests for view in candidates.views)
        first = first._replace(work=first.work._replace(requests=requests))
    before = opinion(made, Candidates(candidates.request, 0.0, [first, *others], hits))
    poorer = first._replace(values={}, others={}, work=first.work._replace(corrected=seen))
    after = opinion(made, Candidates(candidates.request, 0.0, [poorer, *others], hits))
    if before is not None and after is not None and len(candidates) > 1:
        rank_before = sum(score > before[0] + 1e-9 for score in before)
        rank_after = sum(score > after[0] + 1e-9 for score in after)
        best_known = all(after[0] <= score + 1e-9 for score in after[1:]) or rank_after >= rank_before
        assert best_known
