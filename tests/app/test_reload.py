"""A changed file is applied as a whole or refused as a whole, and no stream is dropped."""

from __future__ import annotations

import socket
from functools import partial
from pathlib import Path

import grpc.aio
import pytest
from prometheus_client import generate_latest

from agent.app.agent import Agent
from agent.app.vocabulary import VOCABULARY
from agent.clock import SystemClock
from agent.config import from_flags
from agent.config.file import load
from agent.events.process import Reloaded
from agent.events.requests import Ended, Picked
from agent.events.scraping import ServerRestarted
from agent.instruments.hook import Instruments
from agent.scrape.budget import ALLOCATED_SHARE
from tests.app.live import Live, document, running, servers
from tests.fakes.ext_proc import finish, send_body, send_headers, wait_for_end
from tests.fakes.model_server import vllm_page
from tests.waiting import eventually


async def test_a_stream_continues_after_a_reload_that_removes_its_endpoint(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(2) as (one, two):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            conversation, picked = await live.send_request()
            assert picked == one.address
            path.write_text(document([two.address]))
            await eventually(lambda: live.healthy() == [two.address])
            assert live.pool.in_flight == 1
            other, picked = await live.send_request("other")
            assert picked == two.address
            await finish(conversation)
            await finish(other)
            await eventually(lambda: live.pool.in_flight == 0)
            assert [event.endpoint for event in live.recorder.of(Ended)] == [one.address, two.address]
            assert live.pool.store.in_flight == 0
            (reloaded,) = live.recorder.of(Reloaded)
            assert reloaded == Reloaded(True, f"pools[default].endpoints +{two.address} -{one.address}")


async def test_the_next_pick_uses_the_new_profile(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            for profile in ("blend", "affinity"):
                path.write_text(document([one.address], f"  profile: {profile}\n"))
                await eventually(partial(lambda name: live.pool.profile.name == name, profile))
                conversation, _ = await live.send_request()
                await finish(conversation)
            assert [event.profile for event in live.recorder.of(Picked)] == ["blend", "affinity"]


async def test_the_state_of_an_endpoint_that_stays_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(2) as (one, two):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            conversation, _ = await live.send_request()
            await finish(conversation)
            held = live.pool.index.blocks(one.address)
            assert held > 0
            path.write_text(document([one.address, two.address], "scrape: {interval: 200ms}\n"))
            await eventually(lambda: len(live.healthy()) == 2)
            assert live.pool.index.blocks(one.address) == held
            assert live.agent.config.scrape.interval == 0.2


async def test_a_budget_and_its_gauges_follow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            assert interval_in_force(live) is None
            path.write_text(document([one.address], "scrape: {interval: 100ms, budget: {scrapesPerSecond: 5}}\n"))
            await eventually(lambda: interval_in_force(live) is not None)
            assert interval_in_force(live) == pytest.approx(1 / (5 * ALLOCATED_SHARE))
            path.write_text(document([one.address]))
            await eventually(lambda: interval_in_force(live) is None)
    assert "scrape.budget.scrapesPerSecond unlimited -> 5" in live.recorder.of(Reloaded)[0].detail


def interval_in_force(live: Live) -> float | None:
    """The scrape interval of active endpoints on `/metrics`; None without a budget."""
    return live.recorder.registry.get_sample_value("igw_scrape_interval_seconds", {"activity": "busy"})


async def test_another_pod_at_the_same_address_is_another_server(tmp_path: Path) -> None:
    """The old pod is still sending its page when the file assigns its address to another pod."""
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):

        def reported(pod: str) -> str:
            return document([one.address]).replace(f"'{one.address}'", f"{{address: '{one.address}', pod: {pod}}}")

        path.write_text(reported("n/pod-a"))
        async with running(path, healthy=1) as live:
            conversation, _ = await live.send_request()
            await finish(conversation)
            assert live.pool.index.blocks(one.address) > 0
            one.page = vllm_page(running=7)
            await eventually(lambda: live.readings(one.address).get("running_requests") == 7)
            one.pause()
            path.write_text(reported("n/pod-b"))
            await eventually(lambda: live.recorder.of(Reloaded))
            assert live.recorder.of(Reloaded) == [
                Reloaded(True, f"pools[default].endpoints[{one.address}].pod n/pod-a -> n/pod-b")
            ]
            assert [event.reason for event in live.recorder.of(ServerRestarted)] == ["another_pod"]
            assert live.readings(one.address) == {}
            assert live.healthy() == []
            assert live.pool.index.blocks(one.address) == 0
            one.page = vllm_page(running=3)
            one.resume()
            await eventually(lambda: live.readings(one.address).get("running_requests") == 3)
            assert live.healthy() == [one.address]


async def test_an_invalid_file_is_refused_and_counted_once_and_the_old_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            before = live.agent.config
            path.write_text(document([one.address], "scrap: {}\n"))
            await eventually(lambda: live.recorder.of(Reloaded))
            pages = one.paths.count("/metrics")
            await eventually(lambda: one.paths.count("/metrics") > pages)
            refused = f"{path}:9: scrap: unknown key; did you mean 'scrape'?"
            assert live.recorder.of(Reloaded) == [Reloaded(False, refused)]
            assert live.agent.config is before
            conversation, picked = await live.send_request()
            assert picked == one.address
            await finish(conversation)
            path.write_text(document([one.address], "state: {staleAfter: 9s}\n"))
            await eventually(lambda: live.agent.config.state.stale_after == 9)
            assert live.pool.store.stale_after == 9


async def test_a_file_with_a_change_that_needs_a_restart_is_refused_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            changed = document([one.address], "scrape: {interval: 200ms}\n").replace(
                "admin: {address: '127.0.0.1:0'}", "admin: {address: '127.0.0.1:9999'}"
            )
            path.write_text(changed)
            await eventually(lambda: live.recorder.of(Reloaded))
            (event,) = live.recorder.of(Reloaded)
            assert event == Reloaded(
                False,
                "needs a restart: admin.address 127.0.0.1:0 -> 127.0.0.1:9999; "
                "nothing was changed: restart the agent, or undo this change",
            )
            assert live.agent.config.scrape.interval == 1


async def test_a_config_map_that_replaces_its_symlink_is_reloaded(tmp_path: Path) -> None:
    async with servers(1) as (one,):
        for name, more in (("v1", ""), ("v2", "  profile: blend\n")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "igw.yaml").write_text(document([one.address], more))
        (tmp_path / "data").symlink_to("v1")
        (tmp_path / "igw.yaml").symlink_to("data/igw.yaml")
        async with running(tmp_path / "igw.yaml", healthy=1) as live:
            (tmp_path / "new").symlink_to("v2")
            (tmp_path / "new").replace(tmp_path / "data")
            await eventually(lambda: live.recorder.of(Reloaded))
            assert live.recorder.of(Reloaded) == [Reloaded(True, "pools[default].profile least-cost -> blend")]
            assert live.pool.profile.name == "blend"


async def test_a_missing_file_is_reported_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            path.unlink()
            await eventually(lambda: live.recorder.of(Reloaded))
            assert live.recorder.of(Reloaded) == [Reloaded(False, f"{path}: cannot be read: No such file or directory")]
            assert live.healthy() == [one.address]
            path.write_text(document([one.address], "  profile: blend\n"))
            await eventually(lambda: live.pool.profile.name == "blend")


async def test_a_file_that_is_restored_is_reported_once(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document([]))
    async with running(path, healthy=0) as live:
        for text, results in (("junk", [False]), (document([]), [False, True]), (document([]), [False, True])):
            path.write_text(text)
            await eventually(
                partial(lambda known: [event.ok for event in live.recorder.of(Reloaded)] == known, results)
            )
            assert b"igw_config_last_reload_successful %.1f\n" % results[-1] in generate_latest(live.recorder.registry)


async def test_a_reload_without_a_file_fails_and_the_configuration_counts_as_valid() -> None:
    clock = SystemClock()
    instruments = Instruments(clock)
    agent = Agent(from_flags(["127.0.0.1:1"], admin_address="127.0.0.1:0"), clock, instruments=instruments)
    assert not await agent.reload()
    assert b"igw_config_last_reload_successful 1.0\n" in generate_latest(instruments.registry)


async def test_a_requested_reload_is_reported_even_without_a_change(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document([]))
    async with running(path, healthy=0) as live:
        assert await live.agent.reload()
        assert live.recorder.of(Reloaded) == [Reloaded(True, "no change")]


async def test_a_pool_may_become_empty_and_then_rejects_requests(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        path.write_text(document([one.address]))
        async with running(path, healthy=1) as live:
            path.write_text(document([]))
            await eventually(lambda: live.agent.config.pools[0].endpoints == ())
            conversation, status = await live.send_request()
            assert status == "503"
            await finish(conversation)


async def test_a_pool_may_be_added_and_removed_while_another_serves(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        alone = document([one.address])
        path.write_text(alone)
        async with running(path, healthy=1) as live:
            conversation, _ = await live.send_request()
            path.write_text(f"{alone}- {{name: new, extProcAddress: '127.0.0.1:0', endpoints: ['{one.address}']}}\n")
            await eventually(lambda: live.agent.pools.get("new") and live.agent.pools["new"].ready())
            path.write_text(alone)
            await eventually(lambda: len(live.recorder.of(Reloaded)) == 2)
            assert [event.detail for event in live.recorder.of(Reloaded)] == ["pools +new", "pools -new"]
            assert list(live.agent.pools) == ["default"]
            assert live.pool.in_flight == 1
            await finish(conversation)
            await eventually(lambda: live.pool.in_flight == 0)


async def test_a_removed_pool_delays_no_other_change_while_one_of_its_bodies_arrives(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    async with servers(1) as (one,):
        alone = document([one.address], "  profile: blend\n")
        path.write_text(
            f"{document([one.address])}- {{name: old, extProcAddress: '127.0.0.1:0', endpoints: ['{one.address}']}}\n"
        )
        async with running(path, healthy=1) as live, grpc.aio.insecure_channel(live.pickers["old"]) as channel:
            conversation = await send_headers(channel, "slow")
            path.write_text(alone)
            await eventually(lambda: live.recorder.of(Reloaded))
            assert live.pool.profile.name == "blend"
            assert list(live.agent.pools) == ["default"]
            assert await send_body(conversation) == one.address  # the removed pool still decides
            await wait_for_end(conversation)


async def test_a_change_between_reading_the_file_and_the_start_is_applied(tmp_path: Path) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document([]))
    config = load(path, VOCABULARY)
    path.write_text(document([], "  profile: blend\n"))
    agent = Agent(config, SystemClock(), path=path)
    await agent.start()
    try:
        await eventually(lambda: agent.config.pools[0].profile == "blend")
        assert agent.pools["default"].profile.name == "blend"
    finally:
        await agent.stop()


async def test_a_new_pool_whose_port_is_in_use_changes_nothing(tmp_path: Path, free_port: int) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(document([]))
    async with running(path, healthy=0) as live:
        with socket.socket() as other:
            other.bind(("127.0.0.1", free_port))
            other.listen()
            path.write_text(
                f"{document([])}- {{name: a, extProcAddress: '127.0.0.1:0', endpoints: []}}\n"
                f"- {{name: b, extProcAddress: '127.0.0.1:{free_port}', endpoints: []}}\n"
            )
            await eventually(lambda: live.recorder.of(Reloaded))
        (event,) = live.recorder.of(Reloaded)
        assert event == Reloaded(
            False,
            f"picker address of pool b 127.0.0.1:{free_port} is in use by another program; "
            "choose another with --ext-proc-address or extProcAddress",
        )
        assert list(live.agent.pools) == ["default"]
