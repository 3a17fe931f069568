"""The document of `/v1/scaling` as types."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from agent.scaling.demand import DRIVERS
from agent.scaling.learnt_capacity import SOURCES
from agent.scaling.needs import NEEDS
from agent.serve.state.schema import Amount, AsOf, JsonObject, Seconds, one_of


class DemandNeedJson(JsonObject):
    """The replicas that one part of the load needs."""

    name: Annotated[str, Meta(extra_json_schema=one_of(NEEDS))]
    replicas: Annotated[Amount | None, Meta(description="null: unknown")]
    reason: Annotated[str, Meta(description="why it is unknown; empty where it is known")]


class DemandInputsJson(JsonObject):
    """What the decision was made from."""

    current_replicas: Annotated[Amount | None, Meta(description="loading ones included; null: never known")]
    ready_replicas: Amount
    seen_replicas: Annotated[Amount, Meta(description="ready ones with a fresh page")]
    coverage: Annotated[float, Meta(ge=0, le=1)]
    loading_replicas: Amount
    credited_requests: Annotated[
        Amount | None, Meta(description="what the loading replicas would have served; null: no capacity is known")
    ]
    waiting_requests: Annotated[Amount, Meta(description="at the servers that are seen")]
    held_requests: Annotated[Amount, Meta(description="in the agents")]
    arrivals_per_second: Annotated[Amount | None, Meta(description="mean of the last minute; null: not known yet")]
    noise_per_second: Annotated[Amount | None, Meta(description="standard deviation of the rate of 15 s")]
    trend_per_minute: Annotated[Amount | None, Meta(description="growth of the rate that is more than noise")]
    trend_window_seconds: Seconds | None
    expected_per_second: Annotated[Amount | None, Meta(description="when a replica that is requested now serves")]
    capacity_per_second: Annotated[Amount | None, Meta(description="requests per second of one replica")]
    capacity_source: Annotated[str, Meta(extra_json_schema=one_of(SOURCES))]
    capacity_age_seconds: Annotated[Seconds | None, Meta(description="since it was last learnt; null: never")]
    unknown_replicas: Annotated[list[str], Meta(description="replicas of the agent whose held requests are unknown")]


class DemandSettingsJson(JsonObject):
    """The options under `demand` of the pool."""

    target: float
    kv_target: float
    startup_seconds: Seconds
    drain_seconds: Seconds
    coverage_floor: float
    look_ahead: bool


class PastDemandJson(JsonObject):
    """One decision of the last hour."""

    seconds_ago: Seconds
    replicas: Annotated[Amount | None, Meta(description="null: withheld")]
    driver: str
    current_replicas: Amount | None
    loading_replicas: Amount
    expected_per_second: Amount | None
    backlog_requests: Amount


class ScalingPoolJson(JsonObject):
    """The demand of one pool."""

    pool: str
    replicas: Annotated[Amount | None, Meta(description="null: withheld")]
    driver: Annotated[str, Meta(extra_json_schema=one_of(DRIVERS))]
    partial: Annotated[bool, Meta(description="too little is known, so that it is not below the current replicas")]
    withheld: Annotated[str, Meta(description="the reason; empty where there is a number")]
    detail: Annotated[str, Meta(description="what exactly is missing")]
    age_seconds: Annotated[Seconds | None, Meta(description="of the oldest reading in it")]
    needs: list[DemandNeedJson]
    inputs: DemandInputsJson | None
    settings: DemandSettingsJson
    past: Annotated[list[PastDemandJson], Meta(description="every 15 s of the last hour, the oldest first")]


class ScalingJson(JsonObject):
    """The demand in replicas of every pool, and what it was made from."""

    as_of: AsOf
    pools: list[ScalingPoolJson]
