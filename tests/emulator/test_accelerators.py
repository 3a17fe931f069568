"""The page of an emulated accelerator reads as that of a real exporter, follows the batch, and has faults."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators import EXPORTERS, exporter
from agent.accelerators.device import Device, Devices
from agent.accelerators.mapping import DeviceReader
from agent.accelerators.table import MEMORY_TOTAL, MEMORY_USED, POWER, TEMPERATURE, UTILIZATION
from agent.emulator import accelerators
from agent.emulator.faults import Faults
from tests.emulator.running_emulator import RunningEmulator, run_emulator
from tests.fakes.faults import fault_of
from tests.waiting import eventually, found

EVERY_KIND = pytest.mark.parametrize("kind", accelerators.KINDS)


def read(kind: str, page: bytes) -> Devices:
    return DeviceReader(exporter(kind)).extract(page, whole=True)


def read_device(kind: str, running: int, **faults) -> Device:
    emulated = accelerators.emulated_device(8001, running, 32)
    (found,) = read(kind, accelerators.page(kind, emulated, Faults(**faults))).devices
    return found


def test_every_exporter_that_the_agent_reads_can_be_emulated() -> None:
    assert set(accelerators.KINDS) == EXPORTERS.keys()


@EVERY_KIND
@given(running=st.integers(0, 64))
def test_all_fields_of_the_page_are_read_and_follow_the_batch(kind: str, running: int) -> None:
    emulated = accelerators.emulated_device(8001, running, 32)
    found = read(kind, accelerators.page(kind, emulated, Faults()))
    (device,) = found.devices
    assert device.pod == "default/emulated-8001"
    assert device.values[UTILIZATION] == pytest.approx(emulated.busy, abs=0.01)
    assert device.values[MEMORY_USED] / device.values[MEMORY_TOTAL] == pytest.approx(0.9)
    assert (device.values[UTILIZATION] > 0.8) is (running > 0)
    assert found.refused == ()
    assert fault_of(device) is None


@pytest.mark.parametrize("kind", ["amd", "dcgm"])
def test_power_and_heat_grow_with_the_batch(kind: str) -> None:
    idle, one, full = (read_device(kind, running).values for running in (0, 1, 32))
    assert idle[POWER] < one[POWER] < full[POWER]
    assert idle[TEMPERATURE] < one[TEMPERATURE] <= full[TEMPERATURE]


@pytest.mark.parametrize(
    ("kind", "fault", "reason"),
    [
        ("dcgm", {"accelerator": "unhealthy"}, "accelerator_xid"),
        ("dcgm", {"accelerator": "ecc"}, "accelerator_ecc"),
        ("amd", {"accelerator": "unhealthy"}, "accelerator_unhealthy"),
        ("amd", {"accelerator": "ecc"}, "accelerator_unhealthy"),
    ],
)
def test_it_can_be_unhealthy(kind: str, fault: dict[str, str], reason: str) -> None:
    found = fault_of(read_device(kind, 4, **fault))
    assert found is not None
    assert found.reason == reason


def test_the_error_code_of_an_unhealthy_device_can_be_set() -> None:
    assert read_device("dcgm", 4, accelerator="unhealthy", accelerator_xid=48).xids == (48,)
    assert fault_of(read_device("dcgm", 4, accelerator="unhealthy", accelerator_xid=43)) is None


@pytest.mark.parametrize("kind", ["amd", "dcgm"])
def test_what_was_not_measured_is_unknown(kind: str) -> None:
    device = read_device(kind, 4, accelerator="blank")
    assert not device.values.keys() & {UTILIZATION, MEMORY_USED, POWER, TEMPERATURE}


@pytest.mark.parametrize("fault", ["unhealthy", "blank"])
def test_an_unhealthy_tpu_is_missing_from_the_page(fault: str) -> None:
    page = accelerators.page("tpu", accelerators.emulated_device(8001, 4, 32), Faults(accelerator=fault))
    assert read("tpu", page).devices == ()


async def test_the_server_serves_the_page_and_it_follows_its_requests() -> None:
    async with run_emulator(accelerator="dcgm") as emulator:
        idle = await _device(emulator)
        assert idle.values[UTILIZATION] == 0
        request = {"model": "tiny", "prompt": "x", "max_tokens": 2000, "ignore_eos": True}
        running = asyncio.create_task(emulator.post("/v1/completions", request))
        await found(lambda: _device(emulator), lambda device: device.values[UTILIZATION] >= 0.9)
        running.cancel()
        await emulator.fault(accelerator="unhealthy")
        assert (await _device(emulator)).xids == (79,)
        await emulator.fault(accelerator="error")
        assert (await emulator.get(accelerators.PATH))[0] == 500
        await emulator.fault(accelerator="hang")
        hanging = asyncio.create_task(emulator.get(accelerators.PATH))
        await eventually(lambda: not hanging.done())
        hanging.cancel()


async def _device(emulator: RunningEmulator) -> Device:
    status, page = await emulator.get(accelerators.PATH)
    assert status == 200
    (device,) = read("dcgm", page).devices
    return device


async def test_a_server_without_an_accelerator_has_no_such_page() -> None:
    async with run_emulator() as emulator:
        assert (await emulator.get(accelerators.PATH))[0] == 404
