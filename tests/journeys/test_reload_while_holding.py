"""A running agent behind a real Envoy reads its file again while it holds requests: each of them is answered."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.journeys.bad_input.fleet import GatewayFleet
from tests.journeys.test_holding import a_full_fleet
from tests.waiting import found


async def reloaded(fleet: GatewayFleet, text: str, result: str = "ok") -> None:
    """Write this text to the file, reload it, and wait for this result."""

    async def number() -> float:
        return (await fleet.counts()).of("igw_reloads_total", result=result)

    before = await number()
    fleet.file.write_text(text)
    fleet.agent.signal(signal.SIGHUP)
    await found(number, lambda now: now == before + 1)


async def test_limits_objectives_and_a_bad_file_lose_no_held_request(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path) as full:
        fleet = full.fleet
        good = fleet.file.read_text()

        def with_section(text: str) -> str:
            return good.replace("pools:\n", f"{text}\npools:\n")

        answers = await full.hold(4)
        for section in (
            "flowControl: {maxRequests: 1, defaultRequestTTL: 1s, quantum: 1}",
            "flowControl: {maxBytes: 1, defaultPriorityBand: {orderingPolicyRef: fcfs-ordering-policy}}",
            (
                "objectives: [{name: batch, priority: -1}]\n"
                "flowControl: {maxRequests: 1, defaultPriorityBand: {fairnessPolicyRef: global-strict-fairness-policy}}"
            ),
            "saturationDetector: {queueDepthThreshold: 2}\nflowControl: {maxRequests: 1}",
        ):
            await reloaded(fleet, with_section(section))
            status, headers, body = await full.send()
            assert (status, body["error"]["type"]) == (429, "rate_limit_error"), section
            assert headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
            assert await full.held() == 4
        await reloaded(fleet, with_section("flowControl: {maxRequests: 0}"), "failed")
        assert "0 would let nothing wait" in fleet.agent.output()
        assert await full.held() == 4
        assert not any(each.done() for each in answers)
        full.free()
        assert await full.answered(answers) == [200] * 4


async def test_flow_control_that_is_switched_off_sends_what_is_held(tmp_path: Path) -> None:
    async with a_full_fleet(tmp_path) as full:
        answers = await full.hold(3)
        good = full.fleet.file.read_text()
        await reloaded(full.fleet, good.replace("pools:\n", "flowControl: {enabled: false}\npools:\n"))
        assert await full.answered(answers) == [200] * 3


async def test_what_is_held_for_the_first_endpoint_survives_that_the_pool_stops_to_scale_from_zero(
    tmp_path: Path,
) -> None:
    async with a_full_fleet(tmp_path) as full:
        fleet = full.fleet
        full.free()
        good = fleet.file.read_text()
        before, _, after = good.partition("endpoints: [")
        empty = f"{before}endpoints: [{after[after.index(']') :]}"
        await reloaded(fleet, empty.replace("endpoints: []", "scaleFromZero: true, endpoints: []"))
        answers = await full.hold(3)
        assert (await fleet.counts()).of("igw_flow_held_at_zero_requests") == 3
        await reloaded(fleet, empty)
        status, _, body = await full.send()
        assert (status, body["error"]["code"]) == (503, "no_endpoint")
        assert await full.held() == 3
        await reloaded(fleet, good)
        assert await full.answered(answers) == [200] * 3
