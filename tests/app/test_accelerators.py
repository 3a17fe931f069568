"""A running agent and accelerator exporters: one scrape per exporter, and its readings in every output of the agent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from agent.events.accelerators import DeviceLost, DevicesRead
from tests.app.live import Live, running, servers
from tests.fakes.model_server import ModelServer, vllm_page
from tests.fakes.schema import check
from tests.waiting import eventually, found

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "accelerators"


@asynccontextmanager
async def exporter(page: bytes) -> AsyncIterator[ModelServer]:
    """An exporter with this page on a free port."""
    server = ModelServer()
    server.page = page
    await server.start()
    yield server
    await server.stop()


def document(endpoints: list[str], accelerators: str) -> str:
    return (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "admin: {address: '127.0.0.1:0'}\nreload: {interval: 100ms}\n"
        "pools:\n- extProcAddress: 127.0.0.1:0\n  endpoints:\n"
        + "".join(f"  - {entry}\n" for entry in endpoints)
        + f"  accelerators:\n  - {accelerators}\n"
    )


async def get(live: Live, path: str) -> Any:
    async with aiohttp.ClientSession() as http, http.get(f"http://{live.admin}{path}") as response:
        return await (response.json() if path.startswith("/v1") else response.text())


def entry(server: Any, pod: str) -> str:
    return f"{{address: '{server.address}', pod: {pod}}}"


PAGE = (PAGES / "dcgm" / "pods.prom").read_bytes()


@asynccontextmanager
async def two_pods(tmp_path: Path, times: str) -> AsyncIterator[tuple[Live, ModelServer, Any, Any]]:
    """A running agent, an exporter with these intervals for the devices of two pods, and the servers in the pods."""
    async with exporter(PAGE) as source, servers(2) as (one, two):
        path = tmp_path / "igw.yaml"
        wanted = f"{{source: dcgm, address: '{source.address}', {times}}}"
        path.write_text(document([entry(one, "llm/chat-0"), entry(two, "llm/chat-1")], wanted))
        async with running(path, healthy=2) as live:
            yield live, source, one, two


async def test_one_exporter_is_scraped_once_for_all_endpoints_and_its_readings_are_in_every_output(
    tmp_path: Path,
) -> None:
    async with two_pods(tmp_path, "interval: 50ms, timeout: 5s, staleAfter: 10s") as (live, source, one, two):
        await eventually(lambda: len(live.recorder.of(DevicesRead)) > 3)
        assert source.connections == 1
        assert source.max_active == 1
        assert set(source.paths) == {"/metrics"}

        state = await get(live, "/v1/state")
        check(state, "State")
        reported = {each["address"]: each["accelerators"] for each in state["pools"][0]["endpoints"]}
        (mine,) = reported[one.address]
        busy = mine["signals"]["accelerator_utilization_ratio"]
        assert (busy["value"], busy["unit"], busy["fresh"]) == (0.96875, "ratio", True)
        assert 0 <= busy["age_seconds"] < 10
        assert mine["signals"]["accelerator_power_watts"]["value"] == 589.75
        assert [device["number"] for device in mine["devices"]] == ["0", "1"]
        assert (mine["source"], mine["exporter"]) == ("dcgm", source.address)
        (theirs,) = reported[two.address]
        assert theirs["signals"]["accelerator_power_watts"]["reason"] == "no_accelerator"

        seen = await get(live, "/v1/accelerators")
        check(seen, "Exporters")
        (stated,) = seen["exporters"]
        assert (stated["fresh"], len(stated["joined"][one.address]), len(stated["unmatched"])) == (True, 2, 1)

        metrics = await get(live, "/metrics")
        labels = f'{{pool="default",server="{one.address}",source="dcgm"}}'
        assert f"igw_endpoint_accelerator_utilization_ratio{labels} 0.96875" in metrics
        assert f'igw_endpoint_accelerator_power_watts{{pool="default",server="{two.address}"' not in metrics
        assert (
            'igw_withheld_gauges{gauge="igw_endpoint_accelerator_power_watts",reason="no_accelerator"} 1.0' in metrics
        )
        assert f'igw_accelerator_devices{{exporter="{source.address}",match="unmatched",source="dcgm"}} 1.0' in metrics
        check(await get(live, "/v1/gauges"), "Gauges")


async def test_a_fatal_xid_makes_its_endpoint_down_and_a_silent_exporter_does_not(
    tmp_path: Path,
) -> None:
    async with two_pods(tmp_path, "interval: 50ms, timeout: 50ms, staleAfter: 200ms") as (live, source, one, two):
        await eventually(lambda: bool(live.recorder.of(DevicesRead)))
        source.page = PAGE.replace(b'err_code="0",err_msg="No Error"', b'err_code="79",err_msg="x"', 1).replace(
            b'err_msg="x"} 0', b'err_msg="x"} 79'
        )
        assert source.page != PAGE
        await eventually(lambda: live.healthy() == [two.address])
        (view,) = (view for view in live.pool.store.snapshot(0.0).endpoints if view.address == one.address)
        assert (view.health, view.reason) == ("down", "accelerator_xid")
        assert 'reason="accelerator_xid"' in await get(live, "/metrics")
        _, picked = await live.send_request()
        assert picked == two.address
        source.page = PAGE
        await eventually(lambda: len(live.healthy()) == 2)
        await source.stop()
        fresh = f'igw_accelerator_exporter_fresh{{exporter="{source.address}",source="dcgm"}}'
        await found(lambda: get(live, "/metrics"), lambda page: f"{fresh} 0.0" in page)
        assert len(live.healthy()) == 2
        state = await get(live, "/v1/state")
        check(state, "State")
        reported = {each["address"]: each["accelerators"][0] for each in state["pools"][0]["endpoints"]}
        busy = reported[one.address]["signals"]["accelerator_utilization_ratio"]
        assert (busy["value"], busy["fresh"], busy["reason"]) == (None, False, "stale")


async def test_an_address_with_a_node_placeholder_is_one_exporter_per_node_and_a_reload_changes_it(
    tmp_path: Path,
) -> None:
    async with exporter(PAGE) as source, servers(2) as (one, two):
        path = tmp_path / "igw.yaml"
        port = source.address.rpartition(":")[2]
        here = f"{{address: '{one.address}', pod: llm/chat-0}}"
        there = f"{{address: '{two.address}', node: 127.0.0.2, pod: llm/chat-1}}"
        wanted = f"{{source: dcgm, address: '{{node}}:{port}', interval: 50ms, timeout: 50ms}}"
        path.write_text(document([here, there], wanted))
        async with running(path, healthy=2) as live:
            await eventually(lambda: bool(live.recorder.of(DevicesRead)))
            seen = await get(live, "/v1/accelerators")
            assert [each["address"] for each in seen["exporters"]] == [f"127.0.0.1:{port}", f"127.0.0.2:{port}"]
            path.write_text(document([here, there], wanted).partition("  accelerators:")[0])
            await eventually(lambda: live.agent.config.pools[0].accelerators == ())
            assert (await get(live, "/v1/accelerators"))["exporters"] == []
            state = await get(live, "/v1/state")
            assert all(each["accelerators"] == [] for each in state["pools"][0]["endpoints"])


def reported(name: str) -> bytes:
    return (PAGES / "dcgm" / f"reported_{name}.prom").read_bytes()


def endpoint_of(state: Any, address: str) -> Any:
    (found,) = (each for each in state["pools"][0]["endpoints"] if each["address"] == address)
    return found


def process(start: str) -> bytes:
    return vllm_page() + f"process_start_time_seconds {start}\n".encode()


XID_94 = "acknowledged: [{device: GPU-11111111-2222-3333-4444-555555555555, xid: 94}]"


async def test_xid_94_ends_with_a_restart_of_its_server_or_with_an_acknowledgement_and_is_shown_with_the_time(
    tmp_path: Path,
) -> None:
    async with exporter(reported("one_card")) as source, servers(1) as (server,):
        server.page = process("1.76e+09")
        path = tmp_path / "igw.yaml"
        fast = "interval: 50ms, timeout: 5s"
        path.write_text(
            document([entry(server, "llm/chat-0")], f"{{source: dcgm, address: '{source.address}', {fast}}}")
        )
        async with running(path, healthy=1) as live:
            await eventually(lambda: bool(live.recorder.of(DevicesRead)))
            source.page = reported("xid_94")
            await eventually(lambda: live.healthy() == [])
            (view,) = live.pool.store.snapshot(live.clock.now()).endpoints
            assert view.reason == "accelerator_xid"
            (mine,) = endpoint_of(await get(live, "/v1/state"), server.address)["accelerators"]
            (device,) = mine["devices"]
            assert device["detail"] == "XID 94: contained memory error; remedy: restart the application"
            assert device["fault_seconds"] >= 0
            server.page = process("1.760003e+09")
            await eventually(lambda: live.healthy() == [server.address])
            state = await get(live, "/v1/state")
            check(state, "State")
            (mine,) = endpoint_of(state, server.address)["accelerators"]
            (ended,) = mine["ended_faults"]
            assert (ended["fault"], ended["ended"]) == ("accelerator_xid", "restarted")
            assert ended["ended_at"] <= state["as_of"]
            assert "igw_accelerator_unhealthy{" not in await get(live, "/metrics")
            # The same error again, which an acknowledgement ends.
            source.page = reported("one_card")
            pages = len(live.recorder.of(DevicesRead))
            await eventually(lambda: len(live.recorder.of(DevicesRead)) > pages + 1)
            source.page = reported("xid_94")
            await eventually(lambda: live.healthy() == [])
            path.write_text(
                document(
                    [entry(server, "llm/chat-0")], f"{{source: dcgm, address: '{source.address}', {fast}, {XID_94}}}"
                )
            )
            await eventually(lambda: live.healthy() == [server.address])
            (mine,) = endpoint_of(await get(live, "/v1/state"), server.address)["accelerators"]
            assert [each["ended"] for each in mine["ended_faults"]] == ["acknowledged"]


async def test_a_card_that_leaves_the_page_with_xid_79_is_named_and_its_endpoint_stays_down(tmp_path: Path) -> None:
    async with exporter(reported("two_cards_one_with_xid_79")) as source, servers(2) as (one, two):
        path = tmp_path / "igw.yaml"
        wanted = f"{{source: dcgm, address: '{source.address}', interval: 50ms, timeout: 5s}}"
        path.write_text(document([entry(one, "llm/chat-0"), entry(two, "llm/chat-1")], wanted))
        async with running(path, healthy=1) as live:
            assert live.healthy() == [two.address]
            source.page = reported("two_cards_one_gone")
            await eventually(lambda: bool(live.recorder.of(DeviceLost)))
            pages = len(live.recorder.of(DevicesRead))
            await eventually(lambda: len(live.recorder.of(DevicesRead)) > pages + 3)
            assert live.healthy() == [two.address]
            state = await get(live, "/v1/state")
            check(state, "State")
            (mine,) = endpoint_of(state, one.address)["accelerators"]
            assert [(device["number"], device["lost"], device["fault"]) for device in mine["devices"]] == [
                ("0", False, ""),
                ("1", True, "accelerator_xid"),
            ]
            assert mine["signals"]["accelerator_memory_total_bytes"]["reason"] == "partial"
            seen = await get(live, "/v1/accelerators")
            check(seen, "Exporters")
            assert [device["number"] for device in seen["exporters"][0]["lost"][one.address]] == ["1"]
            metrics = await get(live, "/metrics")
            labels = f'{{pool="default",server="{one.address}",source="dcgm"}}'
            assert f"igw_endpoint_accelerators_lost{labels} 1.0" in metrics
            assert f"igw_endpoint_accelerators_unhealthy{labels} 1.0" in metrics
            assert f"igw_endpoint_accelerator_memory_total_bytes{labels}" not in metrics
            assert 'igw_accelerators_lost_total{pool="default",source="dcgm"} 1.0' in metrics


async def test_pods_that_share_a_card_by_time_slicing_have_no_value_of_the_card(tmp_path: Path) -> None:
    async with exporter(reported("time_sliced")) as source, servers(2) as (one, two):
        path = tmp_path / "igw.yaml"
        wanted = f"{{source: dcgm, address: '{source.address}', interval: 50ms, timeout: 5s}}"
        path.write_text(document([entry(one, "llm/small-0"), entry(two, "llm/small-1")], wanted))
        async with running(path, healthy=2) as live:
            await eventually(lambda: bool(live.recorder.of(DevicesRead)))
            state = await get(live, "/v1/state")
            check(state, "State")
            for server in (one, two):
                (mine,) = endpoint_of(state, server.address)["accelerators"]
                assert [bool(device["share"]) for device in mine["devices"]] == [True]
                for signal in ("power_watts", "memory_used_bytes", "memory_total_bytes", "utilization_ratio"):
                    row = mine["signals"][f"accelerator_{signal}"]
                    assert (row["value"], row["reason"]) == (None, "share")
                assert mine["signals"]["accelerator_temperature_celsius"]["value"] == 72.0
            metrics = await get(live, "/metrics")
            assert 'igw_withheld_gauges{gauge="igw_endpoint_accelerator_power_watts",reason="share"} 2.0' in metrics
