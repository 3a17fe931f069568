"""The JSON documents of the admin address as types: their encoding and their OpenAPI schemas are both made from these.

A class is an object with exactly its fields. Its docstring and the `Meta` of its fields are the descriptions in
docs/openapi.json, where it is named without `Json`. A field with the default UNSET is left out unless it is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from agent.accelerators.faults import ENDS, FAULTS
from agent.accelerators.table import COMBINED, DEVICE_SIGNALS
from agent.flow.outcomes import PLANNED, STOLEN
from agent.flow.room import LIMITED_BY as ROOM_LIMITS
from agent.kube.pool_endpoints import SOURCE_REASONS
from agent.requests.response import RESULTS
from agent.signals import HISTOGRAMS, SIGNALS, HistogramSignal, Signal, SignalKind
from agent.state.counter_rates import RATES, Rate
from agent.state.health import Health
from agent.state.replicas import STATES
from exporters.gauge import REASONS

Schema = dict[str, Any]
REF: Final = "#/components/schemas/"


class JsonObject(Struct, gc=False, forbid_unknown_fields=True):
    """An object of a document."""


# -- parts of schemas that a type does not express ---------------------------------------------------------------------


def one_of(values: Iterable[str]) -> Schema:
    """A string: one of these."""
    return {"enum": sorted(values)}


def _keys(values: Mapping[str, Schema], *, required: bool = True) -> Schema:
    """A map with these keys only; `values` is what holds for the value of each."""
    schema: Schema = {"properties": dict(values), "propertyNames": one_of(values)}
    return schema | {"required": list(values)} if required else schema


def _value(kind: str, help: str, unit: str, value: Schema) -> Schema:
    ref = f"{REF}{kind}"
    return {"$ref": ref, "description": help, "properties": {"unit": {"const": unit}, "value": value}}


def _signal(row: Signal) -> Schema:
    value: Schema = {"type": ["array", "null"]}
    if row.kind is not SignalKind.NAMES:
        value = {"type": ["number", "null"], "minimum": row.low, "maximum": row.high}
    return _value("SignalValueJson", row.help, row.unit, value)


def _rate(row: Rate) -> Schema:
    value = {"type": ["number", "null"], "minimum": 0} | ({"maximum": 1} if row.unit == "ratio" else {})
    return _value("SignalValueJson", f"{row.help}, over the last 30 seconds", row.unit, value)


def _histogram(row: HistogramSignal) -> Schema:
    return _value("HistogramValueJson", row.help, row.unit, {"type": ["object", "null"]})


_SIGNALS: Final = _keys({name: _signal(row) for name, row in SIGNALS.items()})
_DEVICE_SIGNALS: Final = _keys({name: _signal(DEVICE_SIGNALS[name]) for name in COMBINED})
_RATES: Final = _keys({name: _rate(row) for name, row in RATES.items()})
_BY_HEALTH: Final = _keys({health.value: {"type": "integer"} for health in Health})
_HISTOGRAMS: Final = _keys({name: _histogram(row) for name, row in HISTOGRAMS.items()}, required=False)

# -- fields ------------------------------------------------------------------------------------------------------------

Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(ge=0)]
Amount = Annotated[float, Meta(ge=0)]
Instant = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
AsOf = Annotated[Instant, Meta(description="the instant that all ages refer to, in UTC")]
Reason = Annotated[str, Meta(extra_json_schema=one_of(REASONS))]
NoValueReason = Annotated[Reason, Meta(description="why there is no value; present only when `value` is null")]
Unit = Annotated[str, Meta(description="always the same for one key")]
Age = Annotated[Seconds | None, Meta(description="age of the reading; null where there is none")]
Fresh = Annotated[bool, Meta(description="true exactly when there is a value")]
PageAge = Annotated[Seconds | None, Meta(description="age of the last metrics page; null before the first")]


class HeaderJson(JsonObject):
    """The version of a state and its time."""

    epoch: Annotated[
        str, Meta(description="random for each start of the agent; versions of two epochs cannot be compared")
    ]
    version: Annotated[Count, Meta(description="increases with every change")]
    as_of: AsOf
    uptime_seconds: Annotated[
        Seconds, Meta(description="the same instant in seconds since the epoch began, on a monotonic clock")
    ]


# -- an endpoint -------------------------------------------------------------------------------------------------------


class SignalValueJson(JsonObject):
    """The value of a signal with its unit and age, or null and the reason."""

    value: float | list[str] | None
    unit: Unit
    age_seconds: Age
    fresh: Fresh
    reason: NoValueReason | UnsetType = UNSET


class HistogramJson(JsonObject):
    """Observations since the server started."""

    buckets: Annotated[
        list[tuple[float, float]],
        Meta(description="upper bound, and number of observations up to it; the infinite bucket is left out"),
    ]
    count: Annotated[Amount, Meta(description="number of observations")]
    sum: Annotated[Amount, Meta(description="sum of the observations")]


class HistogramValueJson(JsonObject):
    """A histogram with its unit and age, or null and the reason."""

    value: HistogramJson | None
    unit: Unit
    age_seconds: Age
    fresh: Fresh
    reason: NoValueReason | UnsetType = UNSET


class WorkJson(JsonObject):
    """The requests at the endpoint that have not ended: those that the agent or a peer has routed to it, and those of
    others."""

    requests: Annotated[Count, Meta(description="the agent's own, and those that its peers report")]
    of_peers: Annotated[Count, Meta(description="those of `requests` that other replicas of the agent report")]
    foreign_requests: Annotated[
        Amount,
        Meta(description="those of others, as the last page shows them: running and waiting less `requests`"),
    ]
    prefill_seconds: Annotated[
        Seconds,
        Meta(description="until a new request is scheduled, at as_of; falls by one second per second to queue_seconds"),
    ]
    queue_seconds: Annotated[
        Seconds, Meta(description="the wait in a queue that something else than prefill delays; 0 where there is none")
    ]
    prefill_tokens: Annotated[Amount, Meta(description="uncached prompt tokens that are to be prefilled, at as_of")]
    rate_tokens_per_second: Annotated[float, Meta(gt=0)]
    rate_source: Annotated[str, Meta(extra_json_schema=one_of(("configured", "default", "learnt", "pool")))]
    corrected: Annotated[bool, Meta(description="whether fresh pages correct the estimate")]


class PrefixJson(JsonObject):
    """Prefix cache hits since the agent knows this server."""

    predicted_hit_tokens: Annotated[Amount, Meta(description="hits that the agent's index predicted")]
    measured_hit_tokens: Annotated[float | None, Meta(description="hits that the server counted")]
    gap_tokens: Annotated[
        float | None, Meta(description="predicted minus measured; above 0 the index predicts too many hits")
    ]


class DeviceJson(JsonObject):
    """An accelerator, or a part of one."""

    id: str
    number: Annotated[str, Meta(description="on its machine")]
    part: Annotated[str, Meta(description="of a partitioned card; empty for a whole card")]
    model: str
    node: Annotated[str, Meta(description="as the exporter names it; empty when not reported")]
    pod: Annotated[str, Meta(description="NAMESPACE/POD that uses it; empty when none does or none is reported")]
    container: str
    share: Annotated[
        str,
        Meta(description="how several pods share it; what is measured for the card is then unknown"),
    ]


class EndpointDeviceJson(DeviceJson):
    """An accelerator, or a part of one, and its fault."""

    fault: Annotated[
        str, Meta(description="why it is unhealthy; empty when healthy", extra_json_schema=one_of(("", *FAULTS)))
    ]
    detail: str
    fault_seconds: Annotated[Seconds | None, Meta(description="since the fault was first seen; null when healthy")]
    lost: Annotated[bool, Meta(description="it left the exporter's page; this is what was last known of it")]


class EndedFaultJson(JsonObject):
    """A fault of an accelerator that has no effect any more."""

    device: str
    fault: Annotated[str, Meta(extra_json_schema=one_of(tuple(FAULTS)))]
    detail: str
    fault_seconds: Annotated[Seconds, Meta(description="since the fault was first seen")]
    ended: Annotated[str, Meta(description="why it has no effect", extra_json_schema=one_of(tuple(ENDS)))]
    ended_at: Annotated[str, Meta(description="when: the restart, or when the agent read the acknowledgement")]


class AcceleratorsJson(JsonObject):
    """The accelerators of an endpoint as one source reports them, with the age of the report."""

    source: Annotated[str, Meta(description="the kind of exporter")]
    exporter: Annotated[str, Meta(description="its address; empty when no exporter has reported this endpoint")]
    age_seconds: Annotated[Seconds | None, Meta(description="age of the oldest reading; null where there is none")]
    stale_after_seconds: Seconds
    picked_on: Annotated[bool, Meta(description="whether a profile may use these readings")]
    devices: list[EndpointDeviceJson]
    missing: Annotated[Count, Meta(description="further devices, to the configured number")]
    ended_faults: list[EndedFaultJson]
    signals: Annotated[
        dict[str, SignalValueJson],
        Meta(description="of all devices together: the maximum or the sum", extra_json_schema=_DEVICE_SIGNALS),
    ]


class ErrorsJson(JsonObject):
    """The recent requests of an endpoint that failed, as the proxy reports responses."""

    consecutive_failures: Count
    failure_ratio: Annotated[float, Meta(ge=0, le=1, description="of the recent requests, as of the last one")]
    requests: Annotated[float, Meta(ge=0, description="recent ones; one of 10 s ago counts half")]
    last_failure: Annotated[
        str, Meta(description="the result of the last request that failed", extra_json_schema=one_of(tuple(RESULTS)))
    ]
    age_seconds: Annotated[Seconds, Meta(description="since the last response that counted")]
    ejected: Annotated[bool, Meta(description="it gets trial requests only")]
    ejections: Annotated[Count, Meta(description="the number of this ejection; 0 when it is not ejected")]
    trial_in_seconds: Annotated[
        Seconds | None, Meta(description="until the next trial request may go there; null when it is not ejected")
    ]


class EndpointJson(JsonObject):
    """A replica of a model server."""

    address: Annotated[str, Meta(description="host:port, or [host]:port for IPv6")]
    engine: str
    health: Annotated[
        Health, Meta(description="a healthy or blind endpoint is picked; a failing one gets trial requests")
    ]
    reason: Annotated[str, Meta(description="why it is not healthy, one word; empty when healthy")]
    page_age_seconds: PageAge
    failures: Annotated[Count, Meta(description="scrapes that failed since that page")]
    stale_after_seconds: Annotated[Seconds, Meta(description="a page or a reading of this age is stale")]
    namespace: Annotated[str, Meta(description="of its pod; empty where unknown, as the next two")]
    pod: str
    node: str
    work: WorkJson
    prefix: PrefixJson
    signals: Annotated[
        dict[str, SignalValueJson],
        Meta(description="every signal, reported by the server or not", extra_json_schema=_SIGNALS),
    ]
    histograms: Annotated[
        dict[str, HistogramValueJson],
        Meta(description="the histograms that `scrape.histograms` names", extra_json_schema=_HISTOGRAMS),
    ]
    rates: Annotated[
        dict[str, SignalValueJson],
        Meta(description="how fast the server's counters grow, as of the last page", extra_json_schema=_RATES),
    ]
    accelerators: Annotated[list[AcceleratorsJson], Meta(description="one entry for each source of the pool")]
    errors: Annotated[ErrorsJson | None, Meta(description="null while no recent request failed")]


# -- /v1/state and /v1/state/watch -------------------------------------------------------------------------------------


class SourceProblemJson(JsonObject):
    """What is wrong with the source of a pool's endpoints, or with what it selects."""

    reason: Annotated[str, Meta(description="one word", extra_json_schema=one_of(SOURCE_REASONS))]
    message: Annotated[str, Meta(description="names the object, and says what to change")]


class SourceJson(JsonObject):
    """Where the endpoints of a pool come from, and whether they are those that the source has now."""

    source: Annotated[str, Meta(description="an InferencePool or a selector, for people")]
    current: Annotated[bool, Meta(description="false: the endpoints are the last that were known")]
    age_seconds: Annotated[
        Seconds | None,
        Meta(description="since they were last known to be current; 0 while they are; null: they were never known"),
    ]
    problems: list[SourceProblemJson]


class RewriteTargetJson(JsonObject):
    """A model that replaces the one in a request."""

    model: str
    weight: Annotated[int, Meta(ge=1, description="its part of the sum of the weights of the rule")]


class RewriteJson(JsonObject):
    """A rule of an InferenceModelRewrite. The first one that has the model of a request applies."""

    models: Annotated[list[str], Meta(description="the models that it replaces; none: every model")]
    targets: list[RewriteTargetJson]
    source: Annotated[str, Meta(description="namespace/name of the InferenceModelRewrite")]


class RoomJson(JsonObject):
    """What an endpoint may be sent now, so that the rest waits where priorities count."""

    has_room: Annotated[bool, Meta(description="a request may be sent now")]
    requests: Annotated[Amount | None, Meta(description="so many more requests; null: any number")]
    opens_in_seconds: Annotated[
        Seconds | None,
        Meta(description="until the work before them takes less than the allowed wait; null: by the end of a request"),
    ]
    kv_tokens: Annotated[Amount | None, Meta(description="prompt tokens that fit into its KV cache; null: not limited")]
    saturation: Annotated[Amount, Meta(description="the used part of what is scarcest; 1 and more: no room")]
    limited_by: Annotated[str, Meta(description="what is scarcest", extra_json_schema=one_of(["", *ROOM_LIMITS]))]


class SheddingJson(JsonObject):
    """What would become of a request of this negative priority that arrives now."""

    priority: int
    expected_wait_seconds: Annotated[Seconds | None, Meta(description="null while no rate is known")]
    probability: Annotated[float, Meta(ge=0, le=1, description="that it is refused with 429")]


class PoolFlowJson(JsonObject):
    """Flow control of a pool, renewed at most once a second in a watch: enough for a gateway that picks by itself to
    hold and to shed requests alike."""

    enabled: Annotated[bool, Meta(description="whether requests are held at all")]
    saturated: Annotated[bool, Meta(description="a request that arrives now waits: others do, or no endpoint has room")]
    waiting_requests: Count
    waiting_bytes: Count
    drain_tokens_per_second: Annotated[Amount | None, Meta(description="null before any request has waited")]
    shedding: Annotated[list[SheddingJson], Meta(description="each negative priority, -1 always")]
    rooms: Annotated[
        dict[str, RoomJson | None], Meta(description="endpoint that may be picked -> its room, while `enabled`")
    ]


_OBJECTIVES = "priority of each InferenceObjective; null without an InferencePool, or while they are not known"
_REWRITES = "rules of InferenceModelRewrites, in the order in which they apply; null as `objectives`"


class PoolJson(JsonObject):
    """A pool and its endpoints."""

    pool: str
    discovery: Annotated[SourceJson | None, Meta(description="null where the configuration lists the endpoints")]
    objectives: Annotated[dict[str, int] | None, Meta(description=_OBJECTIVES)]
    rewrites: Annotated[list[RewriteJson] | None, Meta(description=_REWRITES)]
    by_health: Annotated[
        dict[str, Count], Meta(description="number of endpoints in each state", extra_json_schema=_BY_HEALTH)
    ]
    flow: Annotated[PoolFlowJson | None, Meta(description="null where the pool has no flow control")]
    endpoints: list[EndpointJson]


class StateJson(HeaderJson):
    """The state of every pool at as_of."""

    pools: list[PoolJson]


class ChangedPoolJson(JsonObject):
    """A pool that changed, or a new one."""

    pool: str
    discovery: SourceJson | None
    objectives: dict[str, int] | None
    rewrites: list[RewriteJson] | None
    changed: Annotated[list[EndpointJson], Meta(description="new or different endpoints, complete")]
    removed: Annotated[list[str], Meta(description="addresses of removed endpoints")]
    flow: Annotated[
        PoolFlowJson | UnsetType | None,
        Meta(description="absent: as before. Its `rooms` are those that changed; null: the endpoint has none any more"),
    ] = UNSET


class ChangeJson(HeaderJson):
    """Turns the state at `since`, or at a later version, into the state at `version`. Applying it twice is harmless."""

    since: Count
    pools: list[ChangedPoolJson]
    removed_pools: list[str]


# -- /v1/gauges --------------------------------------------------------------------------------------------------------


class GaugeJson(JsonObject):
    """A gauge with its value, or null and the reason why it is withheld."""

    name: str
    aliases: Annotated[list[str], Meta(description="other names of the same gauge")]
    labels: dict[str, str]
    unit: str
    value: float | None
    sample_time: Annotated[Instant, Meta(description="time of the oldest reading in the value")] | UnsetType = UNSET
    age_seconds: Seconds | UnsetType = UNSET
    withheld: (
        Annotated[Reason, Meta(description="; ".join(f"{word}: {text}" for word, text in sorted(REASONS.items())))]
        | UnsetType
    ) = UNSET
    detail: Annotated[str, Meta(description="what exactly is missing, where the reason leaves it open")] | UnsetType = (
        UNSET
    )


class GaugesJson(JsonObject):
    """Every gauge that an autoscaler could read."""

    as_of: AsOf
    gauges: list[GaugeJson]


# -- /v1/accelerators --------------------------------------------------------------------------------------------------


class ExporterJson(JsonObject):
    """An accelerator exporter."""

    source: str
    address: str
    path: str
    fresh: bool
    page_age_seconds: PageAge
    stale_after_seconds: Seconds
    failures: Annotated[Count, Meta(description="scrapes that failed since that page")]
    reason: Annotated[str, Meta(description="of the last failure; empty when there is none")]
    joined: Annotated[dict[str, list[DeviceJson]], Meta(description="endpoint -> its devices")]
    unmatched: Annotated[list[DeviceJson], Meta(description="devices that match no endpoint")]
    ambiguous: Annotated[list[DeviceJson], Meta(description="devices that match several endpoints")]
    lost: Annotated[
        dict[str, list[DeviceJson]],
        Meta(description="endpoint -> devices that left the page"),
    ]
    unhealthy: Annotated[dict[str, str], Meta(description="device -> its fault")]


class ExportersJson(JsonObject):
    """Every accelerator exporter, and which endpoint its devices belong to."""

    as_of: AsOf
    exporters: list[ExporterJson]


# -- /v1/replicas ------------------------------------------------------------------------------------------------------


class PeerJson(JsonObject):
    """Another replica of the agent."""

    address: str
    state: Annotated[str, Meta(extra_json_schema=one_of(sorted(STATES)))]
    reason: Annotated[str, Meta(description="why it does not report; empty where it does")]
    detail: str
    instance: Annotated[str, Meta(description="another one after each start; empty before the first contact")]
    name: str
    version: Annotated[str, Meta(description="of the agent that runs there")]
    age_seconds: Annotated[Seconds | None, Meta(description="of its last report; null before the first")]
    in_flight: Annotated[
        dict[str, Count] | None, Meta(description="its requests in flight by pool; null while they are unknown")
    ]


class ReplicasJson(JsonObject):
    """What this replica of the agent is, and its peers."""

    as_of: AsOf
    enabled: Annotated[bool, Meta(description="whether the configuration has `replicas.address`")]
    instance: str
    name: str
    address: str
    complete: Annotated[bool, Meta(description="whether every part of a sum over replicas is known")]
    unknown: Annotated[list[str], Meta(description="the replicas whose part is unknown, and why")]
    peers: list[PeerJson]


# -- /v1/picks ---------------------------------------------------------------------------------------------------------


class FilterJson(JsonObject):
    """A filter and the endpoints that it removed."""

    name: str
    removed: list[str]


class CostJson(JsonObject):
    """The cost of the request at a candidate, `w + (1 + kappa * W) * u + e * n + d * f`, by its parts. `W` is the mean
    prefill before the request over the candidates; with a shared prefix, the prefill at the candidate itself."""

    backlog_seconds: Annotated[Seconds, Meta(description="w: the wait before the request is scheduled there")]
    prefill_seconds: Annotated[Seconds, Meta(description="u: prefill that the request adds there")]
    requests: Annotated[Count, Meta(description="n: the agent's requests in flight there")]
    foreign_requests: Annotated[Amount, Meta(description="f: requests of others there, as its last page shows them")]
    cost_seconds: Annotated[Seconds, Meta(description="the cost")]


class CandidateJson(JsonObject):
    """An endpoint that every filter kept."""

    address: str
    total: Annotated[float, Meta(description="sum of the scores times their weights")]
    scores: Annotated[dict[str, float], Meta(description="scorer -> its score, 0 to 1")]
    hit_tokens: Annotated[Count | None, Meta(description="prompt tokens expected in its cache")]
    cost: Annotated[CostJson | None, Meta(description="null unless the profile has the least-cost scorer")]


class PickJson(JsonObject):
    """A decision and its reasons."""

    pool: str
    request_id: str
    time: Instant
    age_seconds: Seconds
    endpoint: str
    decided_by: Annotated[str, Meta(description="only_candidate, tie, room, or the scorer that decided")]
    left_warmest: Annotated[bool, Meta(description="another candidate had more of the prompt in its cache")]
    prompt_tokens: Count
    hit_tokens: Annotated[Count, Meta(description="expected in the cache of the endpoint")]
    best_hit_tokens: Annotated[Count, Meta(description="the most expected in the cache of any candidate")]
    shared_prefix: Annotated[bool, Meta(description="other prompts begin with the prefix of that hit too")]
    waited_seconds: Annotated[Seconds, Meta(description="for how long flow control held the request; 0: not at all")]
    dispatched: Annotated[
        str,
        Meta(
            description="why it went when it did: it was not held (empty), the endpoint for which it waited had room "
            "(planned), another one did (stolen)",
            extra_json_schema=one_of(["", PLANNED, STOLEN]),
        ),
    ]
    state_version: Annotated[Count, Meta(description="of the pool's state, not that of /v1/state")]
    filters: Annotated[list[FilterJson], Meta(description="in the order in which they were applied")]
    weights: Annotated[dict[str, float], Meta(description="scorer -> its weight; a scorer without a score is left out")]
    candidates: Annotated[list[CandidateJson], Meta(description="the picked one first, then by falling total")]


class PicksJson(JsonObject):
    """The last picks, the newest first."""

    as_of: AsOf
    picks: list[PickJson]


# -- /healthz, /readyz and errors --------------------------------------------------------------------------------------


class LivenessJson(JsonObject):
    """The agent runs."""

    status: Literal["ok"]


class ReadinessJson(JsonObject):
    """Whether the agent is ready, and the reasons when it is not."""

    ready: bool
    reasons: list[str]


class ErrorDetailJson(JsonObject):
    """The error object of the OpenAI API."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorJson(JsonObject):
    """Why the request was refused."""

    error: ErrorDetailJson


# -- rules between the fields of an object -----------------------------------------------------------------------------

_FRESH_OR_REASON: Final[Schema] = {
    "oneOf": [
        {"properties": {"fresh": {"const": True}, "value": {"not": {"type": "null"}}, "reason": False}},
        {"properties": {"fresh": {"const": False}, "value": {"type": "null"}}, "required": ["reason"]},
    ]
}
_KNOWN_OR_WITHHELD: Final[Schema] = {
    "oneOf": [
        {"properties": {"value": {"type": "number"}, "withheld": False}, "required": ["sample_time", "age_seconds"]},
        {
            "properties": {"value": {"type": "null"}, "sample_time": False, "age_seconds": False},
            "required": ["withheld"],
        },
    ]
}
RULES: Final[Mapping[type[JsonObject], Schema]] = {
    SignalValueJson: _FRESH_OR_REASON,
    HistogramValueJson: _FRESH_OR_REASON,
    GaugeJson: _KNOWN_OR_WITHHELD,
}
