"""A model server with invalid responses to scrapes is counted and named, without effect on other servers.

One that gives no valid response at all is down and not picked. One with a bad page alone is blind and picked. All bad
targets are bad at the same time, in one agent: each has its own pool, together with a healthy server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
import pytest_asyncio

from tests.fakes.model_server import (
    PAGE,
    Behaviour,
    ModelServer,
    SwitchableServer,
    answer,
    break_off,
    drip,
    endless,
    good,
    hang,
    raw,
    reset,
)
from tests.journeys.bad_input.fleet import CHAT, MODES, GatewayFleet, a_fleet
from tests.waiting import found

pytestmark = pytest.mark.asyncio(loop_scope="module")


class BadTarget(NamedTuple):
    """The behaviour of a target, None for a closed port; the reason that is counted and shown; its health."""

    behave: Behaviour | None
    reason: str
    health: str = "down"


def bad_page(behave: Behaviour, reason: str) -> BadTarget:
    """A server that behaves like this at `/metrics`, and serves requests."""

    async def respond(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/metrics":
            await behave(server, path, writer)
        elif path == CHAT:
            writer.write(answer(b'{"object":"chat.completion"}', headers="Content-Type: application/json\r\n"))
        else:
            writer.write(answer(b""))

    return BadTarget(respond, reason, "blind")


TABLE = {
    "refuses": BadTarget(None, "refused"),
    "hangs": BadTarget(hang, "timeout"),
    "hangs-in-the-middle": BadTarget(drip, "timeout"),
    "hangs-up": BadTarget(raw(close=True), "reset"),
    "breaks-off": BadTarget(reset, "reset"),
    "speaks-SSH": BadTarget(raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "bad_http"),
    "answers-500": bad_page(raw(answer(b"oops", "500 Internal Server Error")), "status"),
    "hangs-at-its-page": bad_page(hang, "timeout"),
    "announces-100-MB": bad_page(raw(answer(PAGE, length=100_000_000)), "too_large"),
    "sends-100-MB": bad_page(endless, "too_large"),
    "cuts-a-line": bad_page(raw(answer(PAGE[:-5])), "truncated"),
    "ends-too-soon": bad_page(break_off, "truncated"),
    "sends-HTML": bad_page(raw(answer(b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n")), "not_metrics"),
    "sends-another-engine": bad_page(raw(answer(PAGE.replace(b"vllm:", b"sglang:"))), "wrong_engine"),
    "sends-gzip": bad_page(raw(answer(PAGE, headers="Content-Encoding: gzip\r\n")), "encoding"),
}
SIGNALS = {"igw_endpoint_running_requests", "igw_endpoint_waiting_requests", "igw_endpoint_kv_usage_ratio"}
NAN = "reports-NaN"


class Targets(NamedTuple):
    """The fleet, and each bad target by the name of its pool."""

    fleet: GatewayFleet
    servers: dict[str, SwitchableServer]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def targets(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Targets]:
    behaviours = {name: bad.behave for name, bad in TABLE.items()} | {NAN: nan}
    servers = {name: SwitchableServer() for name in behaviours}
    directory = tmp_path_factory.mktemp("bad targets")
    try:
        for name, server in servers.items():
            await server.start()
            await server.switch(behaviours[name])
        async with a_fleet(
            directory, 1, lambda healthy: {name: [*healthy, server.address] for name, server in servers.items()}
        ) as fleet:
            yield Targets(fleet, servers)
    finally:
        for server in servers.values():
            await server.stop()


async def nan(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """A page whose gauges are NaN; an empty list of models for any other path."""
    if path == "/metrics":
        writer.write(answer(_NAN_PAGE))
    else:
        writer.write(answer(b'{"object":"list","data":[]}', headers="Content-Type: application/json\r\n"))
        writer.close()


def _nan_page() -> bytes:
    lines = PAGE.split(b"\n")
    gauges = (b"vllm:num_requests_running{", b"vllm:num_requests_waiting{", b"vllm:kv_cache_usage_perc{")
    return b"\n".join(line.rpartition(b" ")[0] + b" NaN" if line.startswith(gauges) else line for line in lines)


_NAN_PAGE = _nan_page()


async def failures(fleet: GatewayFleet, name: str) -> float:
    """The counted scrapes of the bad target of this pool with its reason."""
    return (await fleet.counts()).of("igw_scrapes_total", pool=name, result="failed", reason=TABLE[name].reason)


async def is_without_readings(targets: Targets, name: str) -> None:
    """Every output of the agent shows the bad target as down or blind, with the reason."""
    fleet, bad, health = targets.fleet, targets.servers[name].address, TABLE[name].health
    state = await found(
        lambda: fleet.endpoint(name, bad),
        lambda seen: (seen["health"], seen["reason"]) == (health, TABLE[name].reason),
    )
    if health == "blind":
        del state["signals"]["served_models"]  # it has a request of its own
    reported = {signal: (logged["value"], logged["reason"]) for signal, logged in state["signals"].items()}
    assert reported == dict.fromkeys(reported, (None, health))
    gauges = await fleet.gauges(name, bad)
    assert {(gauges[each]["value"], gauges[each]["withheld"]) for each in SIGNALS} == {(None, health)}
    counts = await fleet.counts()
    assert counts.by("state", "igw_endpoint_health", pool=name, server=bad).keys() == {health}
    assert counts.of("igw_pool_coverage_ratio", pool=name, signal="running_requests") == 0.5
    for signal in SIGNALS:
        assert counts.by("server", signal, pool=name).keys() <= set(fleet.healthy)


async def others_continue(targets: Targets, name: str) -> None:
    """The other server of the pool is scraped and serves, alone where the bad target is down."""
    fleet = targets.fleet
    (other,) = fleet.healthy
    before = await fleet.counts()
    for way in MODES:
        status, body = await fleet.send(name, way)
        assert (status, body["object"]) == (200, "chat.completion")
    scraped = before.of("igw_scrapes_total", pool=name, result="ok")
    after = await found(fleet.counts, lambda seen: seen.of("igw_scrapes_total", pool=name, result="ok") > scraped)
    label = {"server": other} if name in TABLE and TABLE[name].health == "down" else {}
    assert after.of("igw_picks_total", pool=name, **label) == before.of("igw_picks_total", pool=name) + len(MODES)
    state = await fleet.endpoint(name, other)
    assert (state["health"], state["reason"], state["failures"]) == ("healthy", "", 0)
    assert state["signals"]["running_requests"]["fresh"]


@pytest.mark.parametrize("name", TABLE)
async def test_a_bad_target_is_counted_by_its_reason_and_named_while_the_pool_serves(
    targets: Targets, name: str
) -> None:
    await is_without_readings(targets, name)
    assert await failures(targets.fleet, name)
    logged = f"scrape of {targets.servers[name].address} failed: {TABLE[name].reason}: "
    assert logged in targets.fleet.agent.output()
    await others_continue(targets, name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def before(targets: Targets) -> dict[str, float]:
    """Every bad target was good for a time and is bad again; the failures of each before it became bad again."""
    fleet = targets.fleet
    for name in TABLE:
        await targets.servers[name].switch(good)
    for name in TABLE:
        await is_good(fleet, name, targets.servers[name].address)
    failed = {name: await failures(fleet, name) for name in TABLE}
    for name, bad in TABLE.items():
        await targets.servers[name].switch(bad.behave)
    return failed


async def is_good(fleet: GatewayFleet, name: str, address: str) -> None:
    """The readings of the target are in the state and published."""
    state = await found(lambda: fleet.endpoint(name, address), lambda seen: seen["health"] == "healthy")
    assert state["signals"]["running_requests"]["value"] == 4
    assert (await fleet.gauges(name, address))["igw_endpoint_running_requests"]["value"] == 4


@pytest.mark.parametrize("name", TABLE)
async def test_a_target_that_was_good_for_a_time_is_bad_again_and_its_readings_are_withheld(
    targets: Targets, before: dict[str, float], name: str
) -> None:
    await is_without_readings(targets, name)
    assert await failures(targets.fleet, name) > before[name]
    await others_continue(targets, name)


async def test_values_that_are_not_numbers_are_counted_and_withheld_and_the_server_is_still_used(
    targets: Targets,
) -> None:
    fleet, server = targets.fleet, targets.servers[NAN]
    state = await found(lambda: fleet.endpoint(NAN, server.address), lambda seen: seen["health"] == "healthy")
    signals = state["signals"]
    refused = {"running_requests", "waiting_requests", "kv_usage_ratio"}
    assert {(signals[each]["value"], signals[each]["reason"]) for each in refused} == {(None, "not_reported")}
    assert signals["generation_tokens"]["fresh"]
    gauges = await fleet.gauges(NAN, server.address)
    assert {(gauges[each]["value"], gauges[each]["withheld"]) for each in SIGNALS} == {(None, "not_reported")}
    counts = await fleet.counts()
    assert counts.by("signal", "igw_scrape_refused_values_total", pool=NAN, reason="not_finite").keys() == refused
    await others_continue(targets, NAN)
