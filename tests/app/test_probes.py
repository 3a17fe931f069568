"""Probes are asked in turn, never twice at a time, and their silence is told as an exporter's is."""

from __future__ import annotations

import threading

from agent.accelerators.combine import Accelerators
from agent.accelerators.device import Device
from agent.accelerators.join import By, Place
from agent.accelerators.probe import ProbeFailed
from agent.accelerators.table import UTILIZATION
from agent.app.accelerators import wants_of
from agent.app.device_probes import Asked, Probes
from agent.clock import SystemClock
from agent.config.pools import AcceleratorConfig
from agent.events import Event
from agent.events.accelerators import DevicesFailed
from agent.state.devices import DeviceState, ExporterKey, PoolDevices, Want
from tests.waiting import eventually

KEY = ExporterKey("nvml", "here")


class Library:
    """A probe that a test holds up or breaks."""

    def __init__(self) -> None:
        self.calls = 0
        self.at_once = 0
        self.most_at_once = 0
        self.closed = 0
        self.failure: Exception | None = None
        self.go = threading.Event()
        self.go.set()

    def devices(self, now: float, wall: float) -> list[Device]:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.go.wait(20)
        self.calls += 1
        self.at_once -= 1
        if self.failure is not None:
            raise self.failure
        return [Device("0", "0", {UTILIZATION: 0.5}, node="here")]

    def close(self) -> None:
        self.closed += 1


class Rig:
    """Probes over a state, and all that happened."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.told: dict[str, tuple[Accelerators, ...]] = {}
        clock = SystemClock()
        self.state = DeviceState(self._deliver, self.events.append)
        want = Want(KEY, By.NODE, 60.0, frozenset(), "here")
        self.state.set_pools([PoolDevices("pool", (Place("1:1", "here"),), (want,))], clock.now())
        self.probes = Probes(self.state, clock)

    def _deliver(self, pool: str, address: str, found: tuple[Accelerators, ...], now: float) -> None:
        self.told[address] = found


async def test_a_probe_is_asked_again_and_again_one_call_at_a_time() -> None:
    rig, library = Rig(), Library()
    rig.probes.set_probes({KEY: Asked(library, 0.01, 5.0)})
    await eventually(lambda: library.calls > 3)
    await rig.probes.stop()
    assert library.most_at_once == 1
    assert library.closed == 1
    assert rig.told["1:1"][0].readings[UTILIZATION].value == 0.5


async def test_a_probe_that_hangs_is_told_and_not_asked_a_second_time_meanwhile() -> None:
    rig, library = Rig(), Library()
    library.go.clear()
    rig.probes.set_probes({KEY: Asked(library, 0.01, 0.02)})
    await eventually(lambda: any(isinstance(event, DevicesFailed) for event in rig.events))
    assert library.at_once == 1
    library.go.set()
    await eventually(lambda: rig.state.exporters()[0].page_at is not None)
    await rig.probes.stop()
    assert next(event.reason for event in rig.events if isinstance(event, DevicesFailed)) == "timeout"


async def test_a_probe_that_fails_is_told_with_its_reason_and_asked_again() -> None:
    rig, library = Rig(), Library()
    library.failure = ProbeFailed("not_installed", "install it")
    rig.probes.set_probes({KEY: Asked(library, 0.01, 5.0)})
    await eventually(lambda: library.calls > 2)
    library.failure = None
    await eventually(lambda: rig.state.exporters()[0].page_at is not None)
    await rig.probes.stop()
    assert next(event.reason for event in rig.events if isinstance(event, DevicesFailed)) == "not_installed"


async def test_a_library_that_breaks_in_a_way_of_its_own_is_told_and_asked_again() -> None:
    rig, library = Rig(), Library()
    library.failure = AttributeError("no nvmlEventSetWait_v2 in this release")
    rig.probes.set_probes({KEY: Asked(library, 0.01, 5.0)})
    await eventually(lambda: library.calls > 2)
    library.failure = None
    await eventually(lambda: rig.state.exporters()[0].page_at is not None)
    await rig.probes.stop()
    failed = next(event for event in rig.events if isinstance(event, DevicesFailed))
    assert (failed.reason, failed.detail) == ("client_error", "AttributeError: no nvmlEventSetWait_v2 in this release")


def test_what_google_says_is_shown_and_never_picked_on_and_nvml_is_this_machine() -> None:
    places = (Place("127.0.0.1:8000", "127.0.0.1"),)
    (gke,) = wants_of(AcceleratorConfig(source="gke", project="p", location="l", cluster="c"), places)
    assert (gke.picked_on, gke.key.address) == (False, "p/l/c")
    (nvml,) = wants_of(AcceleratorConfig(source="nvml", join="node"), places)
    assert (nvml.picked_on, nvml.node, nvml.by) == (True, "127.0.0.1", By.NODE)
