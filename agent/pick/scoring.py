"""The interface of a scorer, and the one rule for the score of an unknown signal.

A scorer gives each candidate a number from 0 to 1, where 1 is best, or None when it does not apply to the request. It
gets only candidates with a fresh value of every signal that it needs. A candidate without one gets the lowest score
among the others: an unknown value never makes a candidate better. Where no candidate has it, the scorer does not apply.

An unseen candidate (`agent.pick.candidates`) would never be picked by that rule while the others differ. Its distance
from 1 is that of the candidate with the lowest score, in proportion to the agent's requests in flight at the two. Where
every candidate is unseen, the one with the fewest requests in flight is the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from agent.pick.candidates import Candidates, load_of_unseen

Columns = Mapping[str, Sequence[float]]


class Scorer(Protocol):
    """One preference. It keeps no state between picks: the same candidates and columns give the same scores."""

    name: str
    needs: frozenset[str]

    def score(self, candidates: Candidates, columns: Columns) -> Sequence[float] | None:
        """Scores in [0, 1] aligned with the candidates; None: it does not apply. `columns` are those of `needs`."""
        ...


class Weighted(NamedTuple):
    """A scorer and its weight, which is not negative."""

    scorer: Scorer
    weight: float


def shortest_first(lengths: Sequence[float]) -> list[float]:
    """(longest - own) / (longest - shortest); 1 for all when they are equal. The reference's `queue-scorer` formula."""
    longest, shortest = max(lengths), min(lengths)
    span = longest - shortest
    if span == 0:
        return [1.0] * len(lengths)
    return [(longest - length) / span for length in lengths]


def opinion(scorer: Scorer, candidates: Candidates) -> Sequence[float] | None:
    """The scorer's scores for all candidates by the rule above, or None where it does not apply."""
    if not scorer.needs:
        return scorer.score(candidates, {})
    columns: dict[str, Sequence[float]] = {}
    lacking: set[int] = set()
    for signal in scorer.needs:
        column = candidates.column(signal)
        lacking.update(place for place, value in enumerate(column) if value is None)
        columns[signal] = column  # type: ignore[assignment]
    if not lacking:
        return scorer.score(candidates, columns)
    places = [place for place in range(len(candidates)) if place not in lacking]
    if not places:
        if all(candidates.unseen):
            return shortest_first([float(work.requests) for work in candidates.works])
        return None
    known = scorer.score(
        candidates.keep(places), {signal: [column[place] for place in places] for signal, column in columns.items()}
    )
    if known is None:
        return None
    # Of equal ones the one with the fewest requests, so that the order of the candidates does not matter.
    lowest, requests = min(
        (score, candidates.works[place].requests) for place, score in zip(places, known, strict=True)
    )
    scores = [
        1.0 - min(1.0, load_of_unseen(1.0 - lowest, requests, work.requests, 0.0)) if unseen else lowest
        for work, unseen in zip(candidates.works, candidates.unseen, strict=True)
    ]
    for place, score in zip(places, known, strict=True):
        scores[place] = score
    return scores
