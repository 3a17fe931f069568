"""Whether a pool has requests: the question of an autoscaler that removes the last server of an idle pool.

A pool is active while the agent holds a request for it, or a server of it has one. It is idle only where every part is
known: an endpoint without a fresh page, or a silent replica of the agent, may have requests. A pool that is neither is
unknown, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from math import inf

from agent.scaling.rollup import DatedValue, Unknown, number
from agent.scaling.served_metrics import WithheldMetric
from agent.signals import RUNNING, WAITING
from agent.state.freshness import NOT_REPORTED, STALE
from agent.state.snapshot import EndpointView, Snapshot


class Activity(Enum):
    """What is known of a pool."""

    ACTIVE = "active"
    IDLE = "idle"


def activity(
    snapshot: Snapshot, held: int, now: float, unknown_peers: Sequence[str] = (), max_age: float = inf
) -> Activity | WithheldMetric:
    """Whether the pool of the snapshot has requests at `now`, or why that is unknown.

    `held` are the requests that wait for it; `unknown_peers` the replicas of the agent whose part is unknown, one
    phrase each. A page that is older than `max_age` seconds does not show that a server is idle.
    """
    views = snapshot.endpoints
    if held > 0 or any(view.work.requests > 0 for view in views):
        return Activity.ACTIVE
    unknown: list[tuple[str, str]] = []
    for view in views:
        found = _requests(view, now, max_age)
        if isinstance(found, Unknown):
            unknown.append((view.address, found.reason))
        elif found > 0:
            return Activity.ACTIVE
    if unknown_peers:
        return WithheldMetric("replica_unknown", "; ".join(unknown_peers))
    if unknown:
        address, reason = unknown[0]
        others = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        return WithheldMetric(reason, f"no fresh page of {address}{others}: it may have requests")
    source = snapshot.source
    if source is not None and not source.current:
        since = source.age(now)
        when = "not known yet" if since is None else f"those of {since:.0f} s ago"
        reason = "never_known" if since is None else STALE
        return WithheldMetric(reason, f"the endpoints of {source.source} are {when}: there may be others")
    return Activity.IDLE


def _requests(view: EndpointView, now: float, max_age: float) -> float | Unknown:
    """The requests on the fresh page of an endpoint. A signal that its engine does not report counts as none where the
    page has the other one. A page that is too old may show requests, and does not show that there are none."""
    found = _on_page(view, now)
    if isinstance(found, Unknown):
        return found
    return Unknown(STALE) if found.value <= 0 and now - found.at > max_age else found.value


def _on_page(view: EndpointView, now: float) -> DatedValue | Unknown:
    running, waiting = number(view, RUNNING, now), number(view, WAITING, now)
    if not isinstance(running, Unknown) and not isinstance(waiting, Unknown):
        return DatedValue(running.value + waiting.value, min(running.at, waiting.at))
    known = waiting if isinstance(running, Unknown) else running
    unknown = running if isinstance(running, Unknown) else waiting
    if isinstance(known, Unknown) or not isinstance(unknown, Unknown):
        return running if isinstance(running, Unknown) else Unknown(NOT_REPORTED)
    return known if unknown.reason == NOT_REPORTED else unknown
