"""An emulated accelerator: its page is a real exporter's to who reads those, follows the batch, and can fall sick."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators import EXPORTERS, exporter
from agent.accelerators.device import Device, Devices
from agent.accelerators.faults import FATAL_XIDS, fault_of
from agent.accelerators.mapping import DeviceReader
from agent.accelerators.table import MEMORY_TOTAL, MEMORY_USED, POWER, TEMPERATURE, UTILIZATION
from agent.emulator import accelerators
from agent.emulator.faults import Faults
from tests.emulator.rig import Rig, serving
from tests.waiting import eventually, found

EVERY_KIND = pytest.mark.parametrize("kind", accelerators.KINDS)


def read(kind: str, page: bytes) -> Devices:
    return DeviceReader(exporter(kind)).extract(page, whole=True)


def the_device(kind: str, running: int, **faults) -> Device:
    one = accelerators.device(8001, running, 32)
    (found,) = read(kind, accelerators.page(kind, one, Faults(**faults))).devices
    return found


def test_every_exporter_that_is_read_can_be_emulated() -> None:
    assert set(accelerators.KINDS) == EXPORTERS.keys()


@EVERY_KIND
@given(running=st.integers(0, 64))
def test_the_page_is_read_in_full_and_follows_the_batch(kind: str, running: int) -> None:
    one = accelerators.device(8001, running, 32)
    found = read(kind, accelerators.page(kind, one, Faults()))
    (device,) = found.devices
    assert device.pod == "default/emulated-8001"
    assert device.values[UTILIZATION] == pytest.approx(one.busy, abs=0.01)
    assert device.values[MEMORY_USED] / device.values[MEMORY_TOTAL] == pytest.approx(0.9)
    assert (device.values[UTILIZATION] > 0.8) is (running > 0)
    assert found.refused == ()
    assert fault_of(device, FATAL_XIDS) is None


@pytest.mark.parametrize("kind", ["amd", "dcgm"])
def test_power_and_heat_grow_with_the_batch(kind: str) -> None:
    idle, one, full = (the_device(kind, running).values for running in (0, 1, 32))
    assert idle[POWER] < one[POWER] < full[POWER]
    assert idle[TEMPERATURE] < one[TEMPERATURE] <= full[TEMPERATURE]


@pytest.mark.parametrize(
    ("kind", "fault", "reason"),
    [
        ("dcgm", {"accelerator": "sick"}, "accelerator_xid"),
        ("dcgm", {"accelerator": "ecc"}, "accelerator_ecc"),
        ("amd", {"accelerator": "sick"}, "accelerator_unhealthy"),
        ("amd", {"accelerator": "ecc"}, "accelerator_unhealthy"),
    ],
)
def test_it_can_fall_sick(kind: str, fault: dict[str, str], reason: str) -> None:
    found = fault_of(the_device(kind, 4, **fault), FATAL_XIDS)
    assert found is not None
    assert found.reason == reason


def test_the_error_code_of_a_sick_device_can_be_chosen() -> None:
    assert the_device("dcgm", 4, accelerator="sick", accelerator_xid=48).xids == (48,)
    assert fault_of(the_device("dcgm", 4, accelerator="sick", accelerator_xid=43), FATAL_XIDS) is None


@pytest.mark.parametrize("kind", ["amd", "dcgm"])
def test_what_was_not_measured_is_unknown(kind: str) -> None:
    device = the_device(kind, 4, accelerator="blank")
    assert not device.values.keys() & {UTILIZATION, MEMORY_USED, POWER, TEMPERATURE}


@pytest.mark.parametrize("fault", ["sick", "blank"])
def test_a_sick_tpu_is_one_that_nobody_speaks_of(fault: str) -> None:
    page = accelerators.page("tpu", accelerators.device(8001, 4, 32), Faults(accelerator=fault))
    assert read("tpu", page).devices == ()


async def test_the_server_has_the_page_beside_its_own_and_it_follows_its_requests() -> None:
    async with serving(accelerator="dcgm") as rig:
        idle = await _device(rig)
        assert idle.values[UTILIZATION] == 0
        ask = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True}
        running = asyncio.create_task(rig.post("/v1/completions", ask))
        await found(lambda: _device(rig), lambda device: device.values[UTILIZATION] >= 0.9)
        running.cancel()
        await rig.fault(accelerator="sick")
        assert (await _device(rig)).xids == (79,)
        await rig.fault(accelerator="error")
        assert (await rig.get(accelerators.PATH))[0] == 500
        await rig.fault(accelerator="hang")
        hanging = asyncio.create_task(rig.get(accelerators.PATH))
        await eventually(lambda: not hanging.done())
        hanging.cancel()


async def _device(rig: Rig) -> Device:
    status, page = await rig.get(accelerators.PATH)
    assert status == 200
    (device,) = read("dcgm", page).devices
    return device


async def test_a_server_without_one_has_no_such_page() -> None:
    async with serving() as rig:
        assert (await rig.get(accelerators.PATH))[0] == 404
