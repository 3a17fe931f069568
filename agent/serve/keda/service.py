"""KEDA's external scaler: the gRPC service that KEDA calls for the triggers `external` and `external-push`.

KEDA polls `IsActive` and `GetMetrics`, and holds one `StreamIsActive` and one `StreamMetricSpec` for each trigger. A
stream of activity is sent a change in the same turn of the event loop as the event that brought it: `wake` is called
with each held request. What has no event (a page with requests from elsewhere, a pool that became idle, requests that a
peer holds) is looked for every `WATCH_SECONDS`, while there are streams.

A value that is withheld is answered with UNAVAILABLE and the reason, never with 0: KEDA then keeps the replicas, or
does what the ScaledObject has under `fallback`. A stream of activity is sent nothing while the activity is unknown:
after an error KEDA tries again later, by up to a minute, and would miss a held request meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from math import ceil, isfinite
from typing import Any, Final, NamedTuple, Protocol

from agent.events import Hook
from agent.events.keda import OK, PoolActivated, ScalerCalled, ScalerStreams
from agent.scaling.activity import Activity
from agent.scaling.served_metrics import SERVED, MetricKind, MetricSource, WithheldMetric, not_older
from agent.serve.grpc.call import Call
from agent.serve.grpc.router import GrpcMethod, ServerStreamingMethod, UnaryMethod
from agent.serve.grpc.status import StatusCode, StatusError
from agent.serve.keda import messages
from agent.serve.keda.messages import BadMessage, parse, serialise
from agent.serve.keda.trigger import BAD_METADATA, UNKNOWN_METRIC, UNKNOWN_POOL, BadTrigger, Trigger, read_trigger
from agent.serve.keda.trigger import REASONS as TRIGGER_REASONS

# A change without an event reaches KEDA this much later at most.
WATCH_SECONDS: Final = 0.5
MAX_STREAMS: Final = 2_000  # two for each trigger
_MAX_REQUEST_BYTES: Final = 64 << 10
_MAX_INT: Final = (1 << 63) - 1

WITHHELD: Final = "withheld"
MALFORMED: Final = "malformed"
TOO_MANY: Final = "too_many"
STOPPING: Final = "stopping"
ERROR: Final = "error"  # a defect of the agent
BROKEN: Final = "broken"  # a connection that is not HTTP/2
# The results of a call.
RESULTS: Final = (OK, WITHHELD, *TRIGGER_REASONS, MALFORMED, TOO_MANY, STOPPING, ERROR, BROKEN)
_STATUSES: Final = {
    WITHHELD: StatusCode.UNAVAILABLE,
    UNKNOWN_POOL: StatusCode.NOT_FOUND,
    UNKNOWN_METRIC: StatusCode.NOT_FOUND,
    BAD_METADATA: StatusCode.INVALID_ARGUMENT,
    MALFORMED: StatusCode.INVALID_ARGUMENT,
    TOO_MANY: StatusCode.RESOURCE_EXHAUSTED,
    STOPPING: StatusCode.UNAVAILABLE,
}


class ScaledPools(Protocol):
    """What the service reads of the pools."""

    def names(self) -> Collection[str]:
        """The names of the pools."""
        ...

    def activity(self, pool: str, max_age: float, now: float) -> Activity | WithheldMetric:
        """Whether the pool has requests, over all replicas of the agent; idle only by pages of at most this age in
        seconds."""
        ...

    def held(self, pool: str) -> int:
        """The requests that this agent holds for the pool."""
        ...


class _Refused(Exception):
    """A call without an answer: `result` is a key of _STATUSES."""

    def __init__(self, result: str, message: str, pool: str = "") -> None:
        super().__init__(message)
        self.result = result
        self.pool = pool


class _Selected(NamedTuple):
    """The trigger of a call, and the ScaledObject that has it, as namespace/name."""

    trigger: Trigger
    scaled_object: str


class _ActivityStream:
    """One open StreamIsActive: what it selects, and the activity that was sent last; None: none yet."""

    __slots__ = ("selected", "sent")

    def __init__(self, selected: _Selected) -> None:
        self.selected = selected
        self.sent: bool | None = None


class ExternalScalerService:
    """The service. `pools` and `source` are read for each answer; `now` is the time of the clock. A value that is older
    than `max_age` seconds is withheld; the limit may be replaced while the service runs."""

    name = messages.SERVICE

    def __init__(
        self, pools: ScaledPools, source: MetricSource, max_age: float, now: Callable[[], float], hook: Hook
    ) -> None:
        self.max_age = max_age
        self._pools = pools
        self._source = source
        self._now = now
        self._hook = hook
        self._streams: dict[Call, _ActivityStream] = {}
        self._spec_streams: set[Call] = set()
        self._idle: set[str] = set()  # pools with a stream to which "active" would be a change
        self._timer: asyncio.TimerHandle | None = None
        self._due: asyncio.Handle | None = None
        self._stopping = False

    def methods(self) -> Mapping[str, GrpcMethod]:
        """The methods by name."""
        return {
            "IsActive": self._unary("IsActive", "ScaledObjectRef", self._is_active),
            "StreamIsActive": ServerStreamingMethod(self._stream_is_active, _MAX_REQUEST_BYTES),
            "GetMetricSpec": self._unary("GetMetricSpec", "ScaledObjectRef", self._metric_spec),
            "GetMetrics": self._unary("GetMetrics", "GetMetricsRequest", self._metrics),
            "StreamMetricSpec": ServerStreamingMethod(self._stream_metric_spec, _MAX_REQUEST_BYTES),
        }

    def wake(self, pool: str) -> None:
        """A request is held for the pool. The streams that do not know it are sent it at the end of this turn of the
        event loop. Cheap where there are none."""
        if pool in self._idle and self._due is None:
            self._due = asyncio.get_running_loop().call_soon(self._woken)

    def stop(self) -> None:
        """Finish every stream: KEDA opens it again, at another replica or after two seconds."""
        self._stopping = True
        for handle in (self._timer, self._due):
            if handle is not None:
                handle.cancel()
        calls = [*self._streams, *self._spec_streams]
        self._streams.clear()
        self._spec_streams.clear()
        self._idle.clear()
        for call in calls:
            call.finish(StatusCode.OK)
        self._count_streams()

    # -- the methods -------------------------------------------------------------------------------------------------

    def _is_active(self, selected: _Selected, request: Any) -> bytes:
        return _activity_message(active=self._active(selected.trigger, self._now()))

    def _metric_spec(self, selected: _Selected, request: Any) -> bytes:
        return _spec_message(selected.trigger)

    def _metrics(self, selected: _Selected, request: Any) -> bytes:
        name = selected.trigger.metric.name
        if request.metricName not in {"", name}:
            raise _Refused(
                UNKNOWN_METRIC, f"the trigger selects {name}, not {request.metricName[:64]!r}", selected.trigger.pool
            )
        value = self._value(selected.trigger, self._now())
        if isinstance(value, WithheldMetric):
            raise _withheld(selected.trigger, value)
        number = {"metricName": name, "metricValue": _whole(value), "metricValueFloat": value}
        return serialise("GetMetricsResponse", metricValues=[number])

    def _stream_is_active(self, call: Call, data: bytes) -> Callable[[], None]:
        selected = self._opened("StreamIsActive", data)
        self._streams[call] = stream = _ActivityStream(selected)
        self._count_streams()
        self._send(call, stream, self._now())
        self._note_idle()
        self._watch()
        return lambda: self._left(call)

    def _stream_metric_spec(self, call: Call, data: bytes) -> Callable[[], None]:
        selected = self._opened("StreamMetricSpec", data)
        self._spec_streams.add(call)
        self._count_streams()
        call.send(_spec_message(selected.trigger))  # it follows from the metadata, which are those of the whole stream
        return lambda: self._left(call)

    # -- within: values ----------------------------------------------------------------------------------------------

    def _value(self, trigger: Trigger, now: float) -> float | WithheldMetric:
        name = trigger.metric.name
        read = self._source.external_metric if name in SERVED[MetricKind.EXTERNAL] else self._source.pool_metric
        found = not_older(read(trigger.pool, name, now), self.max_age, now)
        if isinstance(found, WithheldMetric):
            return found
        if not isfinite(found.value) or found.value < 0:  # KEDA takes a negative number as 0
            return WithheldMetric("not_finite", f"it is {found.value:g}")
        return found.value

    def _active(self, trigger: Trigger, now: float) -> bool:
        """Whether the pool is to have a server. Raises _Refused where that is unknown."""
        if trigger.activation is None:
            found = self._pools.activity(trigger.pool, self.max_age, now)
            if isinstance(found, WithheldMetric):
                raise _withheld(trigger, found)
            return found is Activity.ACTIVE
        if self._pools.held(trigger.pool) > 0:
            return True
        value = self._value(trigger, now)
        if isinstance(value, WithheldMetric):
            raise _withheld(trigger, value)
        return value > trigger.activation

    # -- within: calls -----------------------------------------------------------------------------------------------

    def _unary(self, rpc: str, message: str, answer: Callable[[_Selected, Any], bytes]) -> UnaryMethod:
        def handle(data: bytes) -> bytes:
            scaled_object = ""
            try:
                request = _parsed(message, data)
                ref = request.scaledObjectRef if message == "GetMetricsRequest" else request
                scaled_object = _name_of(ref)
                selected = self._select(ref)
                response = answer(selected, request)
            except _Refused as refused:
                raise self._refusal(rpc, scaled_object, refused) from refused
            self._hook(ScalerCalled(rpc, selected.trigger.pool, scaled_object, OK, ""))
            return response

        return UnaryMethod(handle, _MAX_REQUEST_BYTES)

    def _opened(self, rpc: str, data: bytes) -> _Selected:
        """The trigger of a stream that opens. Raises StatusError."""
        scaled_object = ""
        try:
            ref = _parsed("ScaledObjectRef", data)
            scaled_object = _name_of(ref)
            selected = self._select(ref)
            self._check_room(selected.trigger.pool)
        except _Refused as refused:
            raise self._refusal(rpc, scaled_object, refused) from refused
        self._hook(ScalerCalled(rpc, selected.trigger.pool, scaled_object, OK, ""))
        return selected

    def _check_room(self, pool: str) -> None:
        if self._stopping:
            raise _Refused(STOPPING, "this agent stops", pool)
        if len(self._streams) + len(self._spec_streams) >= MAX_STREAMS:
            raise _Refused(TOO_MANY, f"{MAX_STREAMS} streams are open already", pool)

    def _select(self, ref: Any) -> _Selected:
        try:
            return _Selected(read_trigger(dict(ref.scalerMetadata), self._pools.names()), _name_of(ref))
        except BadTrigger as bad:
            raise _Refused(bad.reason, str(bad)) from bad

    def _refusal(self, rpc: str, scaled_object: str, refused: _Refused) -> StatusError:
        self._hook(ScalerCalled(rpc, refused.pool, scaled_object, refused.result, str(refused)))
        return StatusError(_STATUSES[refused.result], str(refused))

    # -- within: streams ---------------------------------------------------------------------------------------------

    def _left(self, call: Call) -> None:
        self._streams.pop(call, None)
        self._spec_streams.discard(call)
        self._note_idle()
        self._count_streams()

    def _watch(self) -> None:
        if self._timer is None and not self._stopping:
            self._timer = asyncio.get_running_loop().call_later(WATCH_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._streams:  # first, so that an error of `_publish` does not end the updates
            self._watch()
        self._publish()

    def _woken(self) -> None:
        self._due = None
        self._publish()

    def _publish(self) -> None:
        """Send each stream what has changed. One that does not read gets the latest once it does."""
        now = self._now()
        activated: dict[str, int] = {}
        pools = self._pools.names()
        for call, stream in tuple(self._streams.items()):
            pool = stream.selected.trigger.pool
            if pool not in pools:
                refused = _Refused(UNKNOWN_POOL, f"the pool {pool} was removed")
                self._refusal("StreamIsActive", stream.selected.scaled_object, refused)
                call.finish(StatusCode.NOT_FOUND, str(refused))
                self._left(call)
            elif not call.queue and self._send(call, stream, now):
                activated[pool] = activated.get(pool, 0) + 1
        self._note_idle()
        for pool, count in activated.items():
            self._hook(PoolActivated(pool, count, self._pools.held(pool)))

    def _send(self, call: Call, stream: _ActivityStream, now: float) -> bool:
        """Send the activity where it has changed and is known. True where it is active since this message."""
        try:
            active = self._active(stream.selected.trigger, now)
        except _Refused:  # unknown: what was sent before stays
            return False
        if active == stream.sent:
            return False
        stream.sent = active
        call.send(_activity_message(active=active))
        return active

    def _note_idle(self) -> None:
        self._idle = {stream.selected.trigger.pool for stream in self._streams.values() if not stream.sent}

    def _count_streams(self) -> None:
        self._hook(ScalerStreams(len(self._streams) + len(self._spec_streams)))


def _parsed(message: str, data: bytes) -> Any:
    try:
        return parse(message, data)
    except BadMessage as bad:
        raise _Refused(MALFORMED, str(bad)) from bad


def _name_of(ref: Any) -> str:
    return f"{ref.namespace}/{ref.name}"


def _withheld(trigger: Trigger, withheld: WithheldMetric) -> _Refused:
    detail = f": {withheld.detail}" if withheld.detail else ""
    message = f"{trigger.metric.name} of pool {trigger.pool} is withheld ({withheld.reason}){detail}"
    return _Refused(WITHHELD, message, trigger.pool)


def _activity_message(*, active: bool) -> bytes:
    return serialise("IsActiveResponse", result=active)


def _spec_message(trigger: Trigger) -> bytes:
    spec = {
        "metricName": trigger.metric.name,
        "targetSize": _whole(trigger.threshold),
        "targetSizeFloat": trigger.threshold,
    }
    return serialise("GetMetricSpecResponse", metricSpecs=[spec])


def _whole(value: float) -> int:
    """The number for a KEDA that reads whole ones only, rounded up: 0.1 of a request is no reason to have none."""
    return min(ceil(value), _MAX_INT)
