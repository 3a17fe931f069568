"""The learnt capacities of the pools as a ConfigMap, so that a restart does not forget them. Pure.

The ConfigMap has one key, `capacity.json`: for each pool the requests per second of a replica, and the wall time at
which that was learnt. What cannot be read is ignored, pool by pool: a capacity is learnt again within a minute of
saturation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

KEY: Final = "capacity.json"
PATH: Final = "/api/v1/namespaces/{namespace}/configmaps"
PATCH_TYPE: Final = "application/merge-patch+json"
# A change below this part of a capacity is not worth a write.
WORTH_WRITING: Final = 0.05


class RecordedCapacity(NamedTuple):
    """Requests per second of a replica, and when that was learnt (seconds since 1970)."""

    requests_per_second: float
    learnt_at: float


def written(name: str, capacities: Mapping[str, RecordedCapacity]) -> bytes:
    """The ConfigMap, for a POST and for a PATCH."""
    pools = {
        pool: {"requestsPerSecond": each.requests_per_second, "learntAt": each.learnt_at}
        for pool, each in sorted(capacities.items())
    }
    text = json.dumps({"pools": pools}, indent=1)
    metadata = {"name": name, "labels": {"app.kubernetes.io/managed-by": "inference-gateway-agent"}}
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: text}}).encode()


def read(body: bytes) -> dict[str, RecordedCapacity]:
    """The capacities in a ConfigMap of the API server, by pool; those that make no sense are left out."""
    try:
        pools = json.loads(json.loads(body)["data"][KEY])["pools"]
        entries = dict(pools).items()
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    found = {}
    for pool, entry in entries:
        rate, at = (_number(entry, key) for key in ("requestsPerSecond", "learntAt"))
        if rate is not None and at is not None and rate > 0:
            found[str(pool)] = RecordedCapacity(rate, at)
    return found


def _number(entry: Any, key: str) -> float | None:
    value = entry.get(key) if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def worth_writing(before: Mapping[str, RecordedCapacity], now: Mapping[str, RecordedCapacity]) -> bool:
    """Whether a pool was learnt for the first time, or its capacity has changed by more than `WORTH_WRITING`."""
    for pool, each in now.items():
        known = before.get(pool)
        if known is None or abs(each.requests_per_second / known.requests_per_second - 1) > WORTH_WRITING:
            return True
    return False
