"""The scorers: type name -> class. A new scorer is one file here and one line in this table."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Final, cast

from agent.pick.scoring import Scorer

SCORERS: Final[Mapping[str, str]] = {
    "accelerator-utilization-scorer": "agent.pick.scorers.accelerator:Accelerator",
    "kv-cache-utilization-scorer": "agent.pick.scorers.kv_cache:KvCache",
    "least-cost-scorer": "agent.pick.scorers.least_cost:LeastCost",
    "lora-affinity-scorer": "agent.pick.scorers.lora_affinity:LoraAffinity",
    "prefix-cache-scorer": "agent.pick.scorers.prefix_cache:PrefixCache",
    "queue-scorer": "agent.pick.scorers.queue_depth:QueueDepth",
    "running-requests-size-scorer": "agent.pick.scorers.running:Running",
    "token-load-scorer": "agent.pick.scorers.token_load:TokenLoad",
}


def scorer(type_: str, parameters: Mapping[str, object]) -> Scorer:
    """A scorer of this type. KeyError for an unknown type, `BadParameter` for a parameter that it does not take."""
    make = cast(Callable[[Mapping[str, object]], Scorer], pkgutil.resolve_name(SCORERS[type_]))
    return make(parameters)
