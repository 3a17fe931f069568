"""The external scaler, called as KEDA calls it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.events.keda import PoolActivated, ScalerCalled, ScalerStreams
from agent.scaling.activity import Activity
from agent.scaling.served_metrics import WithheldMetric
from agent.serve.keda import service as module
from agent.serve.keda.messages import RPCS
from tests.scaler.calls import MAX_AGE, opened, read, request, scaler_of
from tests.waiting import eventually

DEMAND = {"pool": "chat"}
WAITING = {"pool": "chat", "metric": "igw_pool_waiting_requests", "threshold": "4"}
UNKNOWN = WithheldMetric("stale", "no fresh page of 10.0.0.1:8000")


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await call
    return failed.value.code(), failed.value.details() or ""


@pytest.mark.parametrize(
    ("metadata", "name", "target", "whole"),
    [
        (DEMAND, "igw_demand_replicas", 1.0, 1),
        (WAITING, "igw_pool_waiting_requests", 4.0, 4),
        ({"metric": "igw_pool_average_kv_usage", "threshold": "0.8"}, "", 0.8, 1),
    ],
)
async def test_the_target_of_a_replica_is_that_of_the_metadata_and_1_for_demand(
    metadata: Mapping[str, str], name: str, target: float, whole: int
) -> None:
    async with scaler_of("chat") as scaler:
        if not name:  # the average has the name of the catalogue
            from exporters.catalog import pools

            name = pools.AVERAGE_KV.name
            metadata = {**metadata, "metric": name}
        specs = (await scaler.call("GetMetricSpec", metadata)).metricSpecs
        assert [(spec.metricName, spec.targetSizeFloat, spec.targetSize) for spec in specs] == [(name, target, whole)]
        stream = scaler.stream("StreamMetricSpec", metadata)
        assert (await read(stream, "GetMetricSpecResponse")).metricSpecs == specs


async def test_a_value_is_the_number_of_the_pool_and_rounded_up_for_a_keda_that_reads_whole_numbers() -> None:
    async with scaler_of("chat", "code") as scaler:
        scaler.metrics.external["chat", "igw_pool_waiting_requests"] = 2.25
        scaler.metrics.external["code", "igw_pool_waiting_requests"] = 0.0
        for pool, value, whole in (("chat", 2.25, 3), ("code", 0.0, 0)):
            metadata = {**WAITING, "pool": pool}
            found = await scaler.call("GetMetrics", metadata, metricName="igw_pool_waiting_requests")
            (metric,) = found.metricValues
            assert (metric.metricName, metric.metricValueFloat, metric.metricValue) == (
                "igw_pool_waiting_requests",
                value,
                whole,
            )
        assert {(event.rpc, event.pool, event.result) for event in scaler.of(ScalerCalled)} == {
            ("GetMetrics", "chat", "ok"),
            ("GetMetrics", "code", "ok"),
        }


@pytest.mark.parametrize(
    ("rpc", "metadata"), [("GetMetrics", WAITING), ("IsActive", {**WAITING, "activationThreshold": "1"})]
)
async def test_a_value_that_is_older_than_the_limit_is_an_error_and_no_number(
    rpc: str, metadata: Mapping[str, str]
) -> None:
    async with scaler_of("chat") as scaler:
        scaler.metrics.external["chat", "igw_pool_waiting_requests"] = 2.0
        scaler.metrics.age = MAX_AGE
        await scaler.call(rpc, metadata)
        scaler.metrics.age = MAX_AGE + 0.5
        code, details = await refused(scaler.call(rpc, metadata))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert details == (
            "igw_pool_waiting_requests of pool chat is withheld (stale): its age of 15.5 s is over metricsApi.maxAge "
            "(15 s)"
        )
        assert [event.result for event in scaler.of(ScalerCalled)] == ["ok", "withheld"]
        scaler.service.max_age = 20.0
        await scaler.call(rpc, metadata)


@pytest.mark.parametrize("value", [WithheldMetric("none_fresh"), float("nan"), float("inf"), -1.0])
async def test_a_value_that_is_withheld_is_an_error_with_its_reason_and_never_0(value: float | WithheldMetric) -> None:
    async with scaler_of("chat") as scaler:
        scaler.metrics.external["chat", "igw_demand_replicas"] = value
        code, details = await refused(scaler.call("GetMetrics", DEMAND, metricName="igw_demand_replicas"))
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "igw_demand_replicas of pool chat is withheld (no" in details
        (event,) = scaler.of(ScalerCalled)
        assert event == ScalerCalled("GetMetrics", "chat", "llm/chat", "withheld", details)


@pytest.mark.parametrize(
    ("activity", "active"), [(Activity.ACTIVE, True), (Activity.IDLE, False), (UNKNOWN, None)], ids=str
)
async def test_a_pool_is_active_while_it_has_requests_and_an_error_where_that_is_unknown(
    activity: Activity | WithheldMetric, active: bool | None
) -> None:
    async with scaler_of("chat") as scaler:
        scaler.pools.activities["chat"] = activity
        if active is None:
            code, details = await refused(scaler.call("IsActive", WAITING))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "is withheld (stale): no fresh page of 10.0.0.1:8000" in details
        else:
            assert (await scaler.call("IsActive", WAITING)).result is active


@pytest.mark.parametrize(("value", "held", "active"), [(5.0, 0, False), (5.1, 0, True), (0.0, 1, True)])
async def test_with_a_threshold_of_activation_a_pool_is_active_above_it_and_while_a_request_is_held(
    value: float, held: int, active: bool
) -> None:
    async with scaler_of("chat") as scaler:
        scaler.metrics.external["chat", "igw_pool_waiting_requests"] = value
        scaler.pools.waiting["chat"] = held
        found = await scaler.call("IsActive", {**WAITING, "activationThreshold": "5"})
        assert found.result is active


async def test_with_a_threshold_of_activation_a_withheld_metric_is_an_error_unless_a_request_is_held() -> None:
    async with scaler_of("chat") as scaler:
        metadata = {**WAITING, "activationThreshold": "0"}
        assert (await refused(scaler.call("IsActive", metadata)))[0] is grpc.StatusCode.UNAVAILABLE
        scaler.pools.waiting["chat"] = 1
        assert (await scaler.call("IsActive", metadata)).result is True


async def test_a_stream_begins_with_the_activity_and_is_sent_the_first_held_request_without_a_timer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 3600.0)
    async with scaler_of("chat", "code") as scaler:
        chat, code = scaler.stream("StreamIsActive", DEMAND), scaler.stream("StreamIsActive", {"pool": "code"})
        assert (await read(chat)).result is False
        assert (await read(code)).result is False
        scaler.hold("chat", 3)
        scaler.hold("chat")
        assert (await read(chat)).result is True
        assert scaler.of(PoolActivated) == [PoolActivated("chat", 1, 4)]
        scaler.hold("chat")  # it is known
        scaler.hold("code")
        assert (await read(code)).result is True
        assert scaler.of(PoolActivated) == [PoolActivated("chat", 1, 4), PoolActivated("code", 1, 1)]


async def test_a_stream_is_sent_that_the_pool_became_idle_and_that_servers_have_requests_of_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    async with scaler_of("chat") as scaler:
        scaler.pools.activities["chat"] = Activity.ACTIVE
        stream = scaler.stream("StreamIsActive", DEMAND)
        assert (await read(stream)).result is True
        scaler.pools.activities["chat"] = Activity.IDLE
        assert (await read(stream)).result is False
        scaler.pools.activities["chat"] = Activity.ACTIVE
        assert (await read(stream)).result is True


async def test_a_stream_is_sent_nothing_while_the_activity_is_unknown_and_a_held_request_at_once() -> None:
    async with scaler_of("chat") as scaler:
        scaler.pools.activities["chat"] = UNKNOWN
        stream = scaler.stream("StreamIsActive", DEMAND)
        await opened(scaler, 1)
        scaler.hold("chat")
        assert (await read(stream)).result is True  # the first message


async def test_streams_are_counted_while_they_are_open_and_end_with_ok_when_the_agent_stops() -> None:
    async with scaler_of("chat") as scaler:
        streams = [scaler.stream("StreamIsActive", DEMAND) for _ in range(2)]
        for stream in streams:
            await read(stream)
        specs = scaler.stream("StreamMetricSpec", DEMAND)
        await read(specs, "GetMetricSpecResponse")
        assert scaler.of(ScalerStreams)[-1].open == 3
        streams[0].cancel()
        await eventually(lambda: scaler.of(ScalerStreams)[-1].open == 2)
        scaler.service.stop()
        for stream in (streams[1], specs):
            assert await stream.read() is grpc.aio.EOF
            assert await stream.code() is grpc.StatusCode.OK
        assert scaler.of(ScalerStreams)[-1].open == 0
        assert (await refused(read(scaler.stream("StreamIsActive", DEMAND))))[0] is grpc.StatusCode.UNAVAILABLE


async def test_more_streams_than_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS", 1)
    async with scaler_of("chat") as scaler:
        first = scaler.stream("StreamIsActive", DEMAND)
        await read(first)
        code, details = await refused(read(scaler.stream("StreamIsActive", DEMAND)))
        assert (code, details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "1 streams are open already")
        assert scaler.of(ScalerCalled)[-1].result == "too_many"


async def test_the_streams_of_a_removed_pool_end_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WATCH_SECONDS", 0.01)
    async with scaler_of("chat", "code") as scaler:
        stream = scaler.stream("StreamIsActive", {"pool": "code"})
        await read(stream)
        del scaler.pools.activities["code"]
        assert await refused(stream.read()) == (grpc.StatusCode.NOT_FOUND, "the pool code was removed")
        assert scaler.of(ScalerCalled)[-1].result == "unknown_pool"


@pytest.mark.parametrize("rpc", RPCS)
async def test_each_method_refuses_metadata_that_select_nothing_and_counts_it(rpc: str) -> None:
    async with scaler_of("chat", "code") as scaler:
        for metadata, code, result, part in (
            ({"pool": "chatt"}, grpc.StatusCode.NOT_FOUND, "unknown_pool", "'chatt'; there are chat, code"),
            ({}, grpc.StatusCode.INVALID_ARGUMENT, "bad_metadata", "set pool to one of chat, code"),
            ({**DEMAND, "metric": "vllm:x"}, grpc.StatusCode.NOT_FOUND, "unknown_metric", "igw_demand_replicas"),
            ({**DEMAND, "treshold": "1"}, grpc.StatusCode.INVALID_ARGUMENT, "bad_metadata", "'treshold'"),
        ):
            data = request(rpc, metadata)
            if RPCS[rpc].streaming:
                answer = await refused(read(scaler.stream(rpc, metadata), RPCS[rpc].response))
            else:
                answer = await refused(scaler.raw(rpc, data))
            assert answer[0] is code
            assert part in answer[1]
            assert scaler.of(ScalerCalled)[-1] == ScalerCalled(rpc, "", "llm/chat", result, answer[1])


async def test_a_metric_that_the_trigger_does_not_select_is_refused() -> None:
    async with scaler_of("chat") as scaler:
        code, details = await refused(scaler.call("GetMetrics", DEMAND, metricName="s0-other"))
        assert (code, details) == (
            grpc.StatusCode.NOT_FOUND,
            "the trigger selects igw_demand_replicas, not 's0-other'",
        )


@pytest.mark.parametrize("rpc", ["IsActive", "GetMetrics"])
async def test_bytes_that_are_no_message_are_refused_and_counted_and_the_next_call_is_answered(rpc: str) -> None:
    async with scaler_of("chat") as scaler:
        scaler.metrics.external["chat", "igw_demand_replicas"] = 1.0
        code, _ = await refused(scaler.raw(rpc, b"\xff\xff\xff"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert scaler.of(ScalerCalled)[-1].result == "malformed"
        await scaler.call(rpc, DEMAND)
        assert scaler.of(ScalerCalled)[-1].result == "ok"


async def test_a_message_of_megabytes_is_refused() -> None:
    async with scaler_of("chat") as scaler:
        code, _ = await refused(scaler.call("IsActive", {"pool": "x" * (1 << 20)}))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
