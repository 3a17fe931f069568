"""The document of `/v1/flow` as types."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from agent.flow.room import DETECTORS
from agent.flow.room_inputs import SLOT_SOURCES
from agent.serve.state.schema import Amount, AsOf, Count, JsonObject, RoomJson, Seconds, SheddingJson, one_of


class CallerJson(JsonObject):
    """What waits of one caller in one band."""

    name: str
    requests: Count
    bytes: Count
    tokens: Annotated[Count, Meta(description="of prompts and expected output")]
    oldest_seconds: Annotated[Seconds, Meta(description="for how long its oldest request waits")]
    credit_tokens: Annotated[int, Meta(description="what it may use before the others of the band; negative: in debt")]


class BandJson(JsonObject):
    """The requests of one priority."""

    priority: int
    requests: Count
    bytes: Count
    tokens: Annotated[Count, Meta(description="of prompts and expected output")]
    oldest_seconds: Annotated[Seconds, Meta(description="for how long the oldest request waits; 0 where none does")]
    expected_wait_seconds: Annotated[
        Seconds | None, Meta(description="of a request that arrives now; null while no rate is known")
    ]
    ttl_seconds: Annotated[Seconds | None, Meta(description="the longest wait; null: not limited")]
    max_requests: Annotated[Count | None, Meta(description="null: not limited")]
    max_bytes: Annotated[Count | None, Meta(description="null: not limited")]
    callers: Annotated[list[CallerJson], Meta(description="those with the most requests, at most 100")]
    more_callers: Annotated[Count, Meta(description="callers that the list leaves out")]


class RoomInputsJson(JsonObject):
    """What the room of an endpoint is computed from. Null: unknown, so that it limits nothing."""

    seen: Annotated[bool, Meta(description="a fresh page shows the queue of the server")]
    slots: Annotated[Amount | None, Meta(description="requests that the server runs at once")]
    slots_source: Annotated[str, Meta(extra_json_schema=one_of(SLOT_SOURCES))]
    own_requests: Annotated[Count, Meta(description="in flight there, of this agent")]
    peer_requests: Annotated[Count, Meta(description="in flight there, of its replicas")]
    foreign_requests: Annotated[Amount, Meta(description="of others, as the last page shows them")]
    running: Annotated[Amount | None, Meta(description="on the last page")]
    waiting: Annotated[Amount | None, Meta(description="on the last page")]
    sent_requests: Annotated[Count, Meta(description="sent by this agent since that page, and not over")]
    sent_tokens: Annotated[Count, Meta(description="prompt tokens sent by this agent since that page")]
    ended_requests: Annotated[Count, Meta(description="of this agent, on that page and over since")]
    share: Annotated[float, Meta(ge=0, le=1, description="of the free slots that this agent claims")]
    wait_seconds: Annotated[Seconds, Meta(description="the wait there of a request that is sent now")]
    kv_usage: Amount | None
    free_kv_tokens: Amount | None
    kv_capacity_tokens: Amount | None


class FlowEndpointJson(JsonObject):
    """An endpoint that may be picked: its room, and what waits for it."""

    address: str
    room: Annotated[RoomJson | None, Meta(description="null while requests are not held")]
    blocked: Annotated[bool, Meta(description="its next request does not fit into its KV cache")]
    planned_requests: Annotated[Count, Meta(description="that wait for this endpoint")]
    planned_seconds: Annotated[Seconds, Meta(description="of work that they add there")]
    inputs: RoomInputsJson | None


class RoomLimitsJson(JsonObject):
    """The limits of the detectors; null: not limited, or read from pages."""

    slots: Amount | None
    queued_requests: Annotated[Amount, Meta(description="that may wait behind the slots at the server")]
    max_wait_seconds: Annotated[Seconds | None, Meta(description="the allowed wait at the server")]
    blind_requests: Annotated[Amount, Meta(description="in flight at an endpoint whose queue is not seen")]
    queue_threshold: Amount
    kv_threshold: Amount
    max_requests: Amount | None
    max_tokens: Amount | None


class FlowPoolJson(JsonObject):
    """Flow control of one pool."""

    pool: str
    enabled: Annotated[bool, Meta(description="whether requests are held at all")]
    detector: Annotated[str, Meta(extra_json_schema=one_of(DETECTORS))]
    saturated: Annotated[bool, Meta(description="a request that arrives now waits: others do, or no endpoint has room")]
    requests: Annotated[Count, Meta(description="that wait")]
    bytes: Annotated[Count, Meta(description="of their bodies")]
    at_zero: Annotated[bool, Meta(description="they wait because no endpoint may be picked")]
    oldest_seconds: Annotated[Seconds, Meta(description="for how long the oldest request waits; 0 where none does")]
    drain_tokens_per_second: Annotated[
        Amount | None, Meta(description="dispatched while requests waited; null before any has waited")
    ]
    max_requests: Annotated[Count | None, Meta(description="null: not limited")]
    max_bytes: Annotated[Count | None, Meta(description="null: not limited")]
    empty_ttl_seconds: Annotated[
        Seconds | None, Meta(description="the longest wait for a first endpoint; 0: none, null: not limited")
    ]
    shed_from: Annotated[float, Meta(description="part of the TTL from which on negative priorities are shed")]
    shedding: Annotated[list[SheddingJson], Meta(description="each negative priority, -1 always")]
    objectives: Annotated[dict[str, int], Meta(description="the priority of requests that name an objective")]
    models: Annotated[dict[str, int], Meta(description="the priority of requests for a model that name no objective")]
    bands: Annotated[list[BandJson], Meta(description="the highest priority first")]
    room_limits: RoomLimitsJson | None
    endpoints: list[FlowEndpointJson]


class FlowJson(JsonObject):
    """Who waits, for what, and what would be refused now."""

    as_of: AsOf
    pools: list[FlowPoolJson]
