"""Names among the endpoints are resolved; one that does not resolve is reported and affects no other endpoint."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.config.config import Config
from agent.config.pools import EndpointConfig, PoolConfig
from agent.config.reload import ReloadConfig
from agent.discovery.endpoints import DiscoveryParts, EndpointSet, Unresolved
from agent.discovery.static import StaticDiscovery, is_name
from agent.events.scraping import ScrapeFailed
from agent.kube.cluster import Cluster
from tests.app.live import document, running, servers
from tests.fakes.clock import ManualClock
from tests.fakes.model_server import ModelServer
from tests.waiting import eventually

Answers = dict[str, list[str] | OSError]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    """The addresses of names: a table in place of the resolver."""
    table: Answers = {}

    async def look_up(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        found = table[host]
        if isinstance(found, OSError):
            raise found
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in found
        ]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    return table


def pool(*addresses: str) -> PoolConfig:
    return PoolConfig(endpoints=tuple(endpoints(*addresses)))


def config(interval: float) -> Config:
    return Config("test", {}, reload=ReloadConfig(interval=interval))


def static_discovery(pool: PoolConfig, interval: float) -> StaticDiscovery:
    """The discovery of a pool whose names are resolved at this interval."""
    return StaticDiscovery(pool, DiscoveryParts(config(interval), Cluster("", ManualClock()), lambda _: None))


def endpoints(*addresses: str) -> list[EndpointConfig]:
    return [EndpointConfig(address, "vllm") for address in addresses]


@pytest.mark.parametrize(
    ("address", "name"),
    [("localhost:1", True), ("a.b:1", True), ("10.0.0.1:1", False), ("[::1]:1", False), ("10.0.0.1.example:1", True)],
)
def test_a_name_is_distinguished_from_an_address(address: str, name: bool) -> None:
    assert is_name(address) is name


async def test_a_name_resolves_to_all_its_ipv4_addresses(answers: Answers) -> None:
    answers["pods"] = ["10.0.0.2", "10.0.0.1", "10.0.0.2", "fd00::1"]
    found = await static_discovery(PoolConfig(), 1.0).resolve(endpoints("pods:80"))
    assert found.engines == {"10.0.0.1:80": "vllm", "10.0.0.2:80": "vllm"}


async def test_each_address_of_a_name_has_the_facts_of_its_entry(answers: Answers) -> None:
    answers["pods"] = ["10.0.0.1", "10.0.0.2"]
    entry = EndpointConfig("pods:80", "vllm", labels=(("app", "chat"),), node="node-a", pod="llm/vllm-0")
    found = await static_discovery(PoolConfig(), 1.0).resolve([entry])
    assert found.endpoints == {
        address: EndpointConfig(address, "vllm", labels=(("app", "chat"),), node="node-a", pod="llm/vllm-0")
        for address in ("10.0.0.1:80", "10.0.0.2:80")
    }


async def test_a_name_with_ipv6_addresses_only_resolves_to_them(answers: Answers) -> None:
    answers["pods"] = ["fd00::1"]
    assert (await static_discovery(PoolConfig(), 1.0).resolve(endpoints("pods:80"))).engines == {"[fd00::1]:80": "vllm"}


async def test_a_name_whose_resolution_fails_keeps_its_last_addresses(answers: Answers) -> None:
    static = static_discovery(PoolConfig(), 1.0)
    answers["pods"] = ["10.0.0.1"]
    first = await static.resolve(endpoints("pods:80"))
    answers["pods"] = socket.gaierror(-3, "Temporary failure in name resolution")
    assert await static.resolve(endpoints("pods:80")) == first
    assert await static.resolve(endpoints("pods:80")) == first


async def test_a_name_that_never_resolved_is_unresolved_with_the_reason(answers: Answers) -> None:
    answers["typo"] = socket.gaierror(-2, "Name or service not known")
    found = await static_discovery(PoolConfig(), 1.0).resolve(endpoints("10.0.0.9:80", "typo:80"))
    assert list(found.endpoints) == ["10.0.0.9:80"]
    assert found.unresolved == {"typo:80": ("vllm", "Name or service not known")}


async def test_a_name_that_cannot_be_resolved_is_down_and_the_others_serve(tmp_path: Path) -> None:
    async with servers(1) as (one,):
        path = tmp_path / "igw.yaml"
        path.write_text(document([one.address, "missing.invalid:80"]))
        async with running(path, healthy=1) as live:
            (view,) = (view for view in live.pool.store.snapshot(0.0).endpoints if view.address != one.address)
            assert (view.address, view.health, view.reason) == ("missing.invalid:80", "down", "unreachable")
            failed = live.recorder.of(ScrapeFailed)[0]
            assert failed.detail.startswith("the name cannot be resolved: ")
            _, picked = await live.send_request()
            assert picked == one.address


async def test_a_resolver_that_hangs_delays_no_other_name_and_has_one_lookup_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lookups: list[str] = []
    answered = asyncio.Event()

    async def look_up(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        lookups.append(host)
        if host == "slow":
            await answered.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", look_up)
    monkeypatch.setattr("agent.discovery.static.RESOLVE_TIMEOUT_SECONDS", 0.05)
    static = static_discovery(PoolConfig(), 1.0)
    for _ in range(2):
        found = await static.resolve(endpoints("slow:1", "quick:2"))
        assert list(found.endpoints) == ["10.0.0.1:2"]
        assert found.names == {"10.0.0.1:2": "quick"}
        assert found.unresolved == {"slow:1": ("vllm", "no answer within 0.05 s")}
    assert lookups.count("slow") == 1
    answered.set()
    monkeypatch.setattr("agent.discovery.static.RESOLVE_TIMEOUT_SECONDS", 20.0)
    assert (await static.resolve(endpoints("slow:1"))).engines == {"10.0.0.1:1": "vllm"}


async def test_the_server_that_replaces_another_behind_a_name_is_found_when_the_old_one_goes_down(
    tmp_path: Path, answers: Answers
) -> None:
    old, new = ModelServer(), ModelServer()
    await old.start()
    await new.start(old.port, "127.0.0.2")
    path = tmp_path / "igw.yaml"
    path.write_text(document([f"chat.example:{old.port}"]).replace("100ms", "1h"))
    answers["chat.example"] = ["127.0.0.1"]
    try:
        async with running(path, healthy=1) as live:
            assert live.healthy() == [old.address]
            store = live.pool.store
            ticket = store.started(old.address, 100, 0, 0.0)
            answers["chat.example"] = ["127.0.0.2"]
            await old.stop()
            await eventually(lambda: live.healthy() == [f"127.0.0.2:{old.port}"], what="the new one")
            (view,) = store.snapshot(live.clock.now()).endpoints
            assert view.work.requests == 0  # the request of the old server is still in flight there
            assert store.in_flight == 1
            store.ended(ticket, live.clock.now())
    finally:
        await old.stop()
        await new.stop()


async def first(stream: AsyncIterator[EndpointSet]) -> EndpointSet:
    return await asyncio.wait_for(anext(stream), 10)


async def test_a_list_of_addresses_is_one_set_and_then_a_stream_without_end() -> None:
    stream = static_discovery(pool("10.0.0.1:80", "10.0.0.2:80"), 0.001).watch()
    assert list((await first(stream)).endpoints) == ["10.0.0.1:80", "10.0.0.2:80"]
    more = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait({more}, timeout=0.05)
    assert not done
    more.cancel()


async def test_a_name_yields_a_set_when_it_resolves_to_other_addresses_and_none_in_between(answers: Answers) -> None:
    answers["pods"] = ["10.0.0.1"]
    stream = static_discovery(pool("pods:80"), 0.001).watch()
    assert list((await first(stream)).endpoints) == ["10.0.0.1:80"]
    waiting = asyncio.ensure_future(anext(stream))
    done, _ = await asyncio.wait({waiting}, timeout=0.05)  # many resolutions with the same answer
    assert not done
    answers["pods"] = ["10.0.0.1", "10.0.0.2"]
    assert list((await asyncio.wait_for(waiting, 10)).endpoints) == ["10.0.0.1:80", "10.0.0.2:80"]


async def test_an_unresolved_name_yields_a_set_at_every_interval_so_that_its_failures_are_counted(
    answers: Answers,
) -> None:
    answers["typo"] = socket.gaierror(-2, "Name or service not known")
    stream = static_discovery(pool("typo:80"), 0.001).watch()
    for _ in range(3):
        assert (await first(stream)).unresolved == {"typo:80": Unresolved("vllm", "Name or service not known")}


async def test_a_refresh_resolves_at_once(answers: Answers) -> None:
    answers["pods"] = ["10.0.0.1"]
    discovery = static_discovery(pool("pods:80"), 3600.0)
    stream = discovery.watch()
    await first(stream)
    answers["pods"] = ["10.0.0.2"]
    more = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    discovery.refresh()
    assert list((await asyncio.wait_for(more, 10)).endpoints) == ["10.0.0.2:80"]


async def test_a_list_that_is_replaced_holds_from_the_next_stream_on(answers: Answers) -> None:
    answers["pods"] = ["10.0.0.1"]
    discovery = static_discovery(pool("pods:80"), 1.0)
    await first(discovery.watch())
    answers["pods"] = socket.gaierror(-3, "Temporary failure in name resolution")
    discovery.apply(pool("pods:80", "10.0.0.9:80"), config(1.0))
    assert list((await first(discovery.watch())).endpoints) == ["10.0.0.1:80", "10.0.0.9:80"]  # its last addresses
