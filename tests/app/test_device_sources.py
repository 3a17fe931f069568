"""Device sources are polled one call at a time, and their failures are reported as an exporter's are."""

from __future__ import annotations

import threading

from agent.accelerators.combine import Accelerators
from agent.accelerators.device import Device
from agent.accelerators.device_source import DeviceSourceFailed
from agent.accelerators.join import EndpointLocation, JoinKey
from agent.accelerators.table import UTILIZATION
from agent.app.accelerators import wants_of
from agent.app.device_sources import DeviceSourcePoller, PolledSource
from agent.app.tasks import Tasks
from agent.clock import SystemClock
from agent.config.pools import AcceleratorConfig
from agent.events import Event
from agent.events.accelerators import DevicesFailed
from agent.state.devices import DeviceState, ExporterKey, PoolDevices, Want
from tests.waiting import eventually

KEY = ExporterKey("nvml", "here")


class FakeLibrary:
    """A device source that a test delays or breaks."""

    def __init__(self) -> None:
        self.calls = 0
        self.at_once = 0
        self.max_at_once = 0
        self.closed = 0
        self.failure: Exception | None = None
        self.go = threading.Event()
        self.go.set()

    def devices(self, now: float, wall: float) -> list[Device]:
        self.at_once += 1
        self.max_at_once = max(self.max_at_once, self.at_once)
        self.go.wait(20)
        self.calls += 1
        self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        return [Device("0", "0", {UTILIZATION: 0.5}, node="here")]

    def close(self) -> None:
        self.closed += 1


class DeviceSourcesRig:
    """A poller, its state, and all events."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.delivered: dict[str, tuple[Accelerators, ...]] = {}
        clock = SystemClock()
        self.tasks = Tasks(clock, self.events.append)
        self.state = DeviceState(self._deliver, self.events.append)
        want = Want(KEY, JoinKey.NODE, 60.0, frozenset(), "here")
        self.state.set_pools([PoolDevices("pool", (EndpointLocation("1:1", "here"),), (want,))], clock.now())
        self.poller = DeviceSourcePoller(self.state, clock, self.tasks)

    async def stop(self) -> None:
        self.poller.stop()
        await self.tasks.stop()

    def _deliver(self, pool: str, address: str, found: tuple[Accelerators, ...], now: float) -> None:
        self.delivered[address] = found


async def test_a_source_is_polled_repeatedly_one_call_at_a_time() -> None:
    rig, library = DeviceSourcesRig(), FakeLibrary()
    rig.poller.set_sources({KEY: PolledSource(library, 0.01, 5.0)})
    await eventually(lambda: library.calls > 3)
    await rig.stop()
    assert library.max_at_once == 1
    assert library.closed == 1
    assert rig.delivered["1:1"][0].readings[UTILIZATION].value == 0.5


async def test_a_source_that_hangs_is_reported_and_not_called_a_second_time_meanwhile() -> None:
    rig, library = DeviceSourcesRig(), FakeLibrary()
    library.go.clear()
    rig.poller.set_sources({KEY: PolledSource(library, 0.01, 0.02)})
    await eventually(lambda: any(isinstance(event, DevicesFailed) for event in rig.events))
    assert library.at_once == 1
    library.go.set()
    await eventually(lambda: rig.state.exporters()[0].page_at is not None)
    await rig.stop()
    assert next(event.reason for event in rig.events if isinstance(event, DevicesFailed)) == "timeout"


async def test_a_source_that_fails_is_reported_with_its_reason_and_polled_again() -> None:
    rig, library = DeviceSourcesRig(), FakeLibrary()
    library.failure = DeviceSourceFailed("not_installed", "install it")
    rig.poller.set_sources({KEY: PolledSource(library, 0.01, 5.0)})
    await eventually(lambda: library.calls > 2)
    library.failure = None
    await eventually(lambda: rig.state.exporters()[0].page_at is not None)
    await rig.stop()
    assert next(event.reason for event in rig.events if isinstance(event, DevicesFailed)) == "not_installed"


async def test_an_unexpected_exception_of_a_library_is_reported_and_the_source_polled_again() -> None:
    rig, library = DeviceSourcesRig(), FakeLibrary()
    library.failure = AttributeError("no nvmlEventSetWait_v2 in this release")
    rig.poller.set_sources({KEY: PolledSource(library, 0.01, 5.0)})
    await eventually(lambda: library.calls > 2)
    library.failure = None
    await eventually(lambda: rig.state.exporters()[0].page_at is not None)
    await rig.stop()
    failed = next(event for event in rig.events if isinstance(event, DevicesFailed))
    assert (failed.reason, failed.detail) == ("client_error", "AttributeError: no nvmlEventSetWait_v2 in this release")


def test_gke_readings_are_never_used_for_picking_and_nvml_is_this_machine() -> None:
    places = (EndpointLocation("127.0.0.1:8000", "127.0.0.1"),)
    (gke,) = wants_of(AcceleratorConfig(source="gke", project="p", location="l", cluster="c"), places)
    assert (gke.picked_on, gke.key.address) == (False, "p/l/c")
    (nvml,) = wants_of(AcceleratorConfig(source="nvml", join="node"), places)
    assert (nvml.picked_on, nvml.node, nvml.by) == (True, "127.0.0.1", JoinKey.NODE)
