"""Whether a pool has no server at all, so that a sum over its servers is 0 and not unknown.

A pool without endpoints may have servers that are not ready: an autoscaler that took their sum for 0 would remove them
while they start. It has none where the configuration lists none, or where no pod has the labels of the pool.
"""

from __future__ import annotations

from agent.kube.pool_endpoints import NO_MATCHING_PODS
from agent.state.snapshot import Snapshot


def has_no_server(snapshot: Snapshot) -> bool:
    """Whether the source of the pool's endpoints is current and has no server, ready or not."""
    source = snapshot.source
    if snapshot.endpoints:
        return False
    return source is None or (source.current and any(each.reason == NO_MATCHING_PODS for each in source.problems))
