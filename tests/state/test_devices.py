"""Accelerator readings reach the endpoints of their devices, go stale, and unhealthy devices take endpoints out."""

from __future__ import annotations

import pytest

from agent.accelerators.combine import Accelerators
from agent.accelerators.device import Device, Devices
from agent.accelerators.faults import FAULTS
from agent.accelerators.join import EndpointLocation, JoinKey
from agent.accelerators.table import COMBINED, POWER, UTILIZATION
from agent.accelerators.xids import FATAL_XIDS
from agent.engines.mapping import Extraction
from agent.events import Event
from agent.events.accelerators import DeviceHealthChanged, DevicesFailed, DevicesRead
from agent.events.scraping import HealthChanged
from agent.scaling import accelerators as published
from agent.scaling.rollup import Current, Unknown
from agent.signals import RUNNING
from agent.state.devices import DeviceState, ExporterKey, PoolDevices, Want
from agent.state.health import Health
from agent.state.store import RoutingStore

KEY = ExporterKey("dcgm", "node-a:9400", "/metrics")
OTHER = KEY._replace(address="node-b:9400")
STALE = 15.0


def want(
    key: ExporterKey = KEY, by: JoinKey = JoinKey.POD, node: str = "", fatal: frozenset[int] = frozenset(FATAL_XIDS)
) -> Want:
    return Want(key, by, STALE, fatal, node)


def page(*devices: Device) -> Devices:
    return Devices(devices)


def gpu(name: str, pod: str = "n/a", busy: float = 0.5, **more) -> Device:
    return Device(name, name, {UTILIZATION: busy, POWER: 100.0}, pod=pod, **more)


class DevicesRig:
    """A pool's store, the exporters, and all events."""

    def __init__(
        self,
        *wants: Want,
        places: tuple[EndpointLocation, ...] = (EndpointLocation("1:1", pod="n/a"), EndpointLocation("2:1", pod="n/b")),
    ) -> None:
        self.events: list[Event] = []
        self.store = RoutingStore("pool", stale_after=3.0, hook=self.events.append)
        self.store.set_endpoints({place.address: "vllm" for place in places}, 0.0)
        self.state = DeviceState(self.deliver, self.events.append)
        self.state.set_pools([PoolDevices("pool", places, wants or (want(),))], 0.0)

    def deliver(self, pool: str, address: str, found: tuple[Accelerators, ...], now: float) -> None:
        self.store.set_accelerators(address, found, now)

    def of(self, address: str, now: float = 0.0) -> Accelerators:
        (found,) = (view for view in self.store.snapshot(now).endpoints if view.address == address)
        (one,) = found.accelerators
        return one

    def health(self, address: str, now: float) -> tuple[str, str]:
        (found,) = (view for view in self.store.snapshot(now).endpoints if view.address == address)
        return found.health.value, found.reason

    def scraped(self, now: float) -> None:
        for address in ("1:1", "2:1"):
            self.store.observed(address, Extraction({RUNNING: 1.0}, (), ()), now, 0.0, 10)


def test_one_page_reaches_every_endpoint_of_the_exporter() -> None:
    rig = DevicesRig()
    rig.state.observed(KEY, page(gpu("0"), gpu("1", busy=0.9), gpu("2", "n/b", 0.1)), 5.0, 0.1, 100)
    assert published.reading(rig.of("1:1"), UTILIZATION, 6.0) == Current(0.9, 5.0)
    assert published.reading(rig.of("1:1"), POWER, 6.0) == Current(200.0, 5.0)
    assert published.reading(rig.of("2:1"), UTILIZATION, 6.0) == Current(0.1, 5.0)
    assert [event for event in rig.events if isinstance(event, DevicesRead)] == [
        DevicesRead("dcgm", "node-a:9400", 5.0, 0.1, 100, (), ())
    ]


def test_before_the_first_page_and_without_a_device_there_is_a_reason() -> None:
    rig = DevicesRig()
    assert set(rig.of("1:1").withheld.values()) == {"never_scraped"}
    rig.state.observed(KEY, page(gpu("0")), 5.0, 0.1, 100)
    assert rig.of("2:1").withheld == dict.fromkeys(COMBINED, "no_accelerator")
    assert published.reading(rig.of("2:1"), UTILIZATION, 5.0) == Unknown("no_accelerator")


def test_an_exporter_that_fails_makes_readings_stale_and_no_endpoint_unhealthy() -> None:
    rig = DevicesRig()
    rig.state.observed(KEY, page(gpu("0")), 5.0, 0.1, 100)
    for second in range(6, 60):
        rig.state.failed(KEY, "timeout", "no answer", float(second), 1.0)
        rig.scraped(float(second))
    assert rig.health("1:1", 59.5) == ("healthy", "")
    assert published.reading(rig.of("1:1", 59.5), UTILIZATION, 59.5) == Unknown("stale")
    (view,) = rig.state.exporters()
    assert (view.failures, view.reason, view.fresh(59.5), view.fresh(19.9), view.fresh(20.0)) == (
        54,
        "timeout",
        False,
        True,
        False,
    )
    assert sum(isinstance(event, DevicesFailed) for event in rig.events) == 54


def test_a_snapshot_is_good_until_a_reading_of_an_accelerator_expires() -> None:
    rig = DevicesRig()
    rig.state.observed(KEY, page(gpu("0")), 5.0, 0.1, 100)
    rig.scraped(18.0)
    assert rig.store.snapshot(18.0).good_until == 20.0


@pytest.mark.parametrize("reason", sorted(FAULTS))
def test_an_unhealthy_accelerator_takes_its_endpoint_out_until_a_page_shows_it_healthy(reason: str) -> None:
    unhealthy = {
        "accelerator_xid": gpu("1", xids=(79,)),
        "accelerator_ecc": Device("1", "1", {"accelerator_uncorrected_ecc_errors": 2.0}, pod="n/a"),
        "accelerator_row_remap": Device("1", "1", {"accelerator_row_remap_failed": 1.0}, pod="n/a"),
        "accelerator_unhealthy": Device("1", "1", {"accelerator_healthy": 0.0}, pod="n/a"),
    }[reason]
    rig = DevicesRig()
    rig.scraped(5.0)
    assert rig.health("1:1", 5.0) == ("healthy", "")
    rig.state.observed(KEY, page(gpu("0"), unhealthy, gpu("2", "n/b")), 5.0, 0.1, 100)
    assert rig.health("1:1", 5.2) == ("down", reason)
    assert rig.health("2:1", 5.2) == ("healthy", "")
    rig.scraped(6.0)
    assert rig.health("1:1", 6.0) == ("down", reason)
    rig.state.failed(KEY, "refused", "gone", 30.0, 0.0)
    rig.scraped(30.0)
    assert rig.health("1:1", 30.0) == ("down", reason)  # a failed scrape shows no recovery
    rig.state.observed(KEY, page(gpu("0"), gpu("1"), gpu("2", "n/b")), 31.0, 0.1, 100)
    assert rig.health("1:1", 31.2) == ("healthy", "")
    changes = [(event.device, event.reason) for event in rig.events if isinstance(event, DeviceHealthChanged)]
    assert changes == [("1", reason), ("1", "")]
    assert [event.reason for event in rig.events if isinstance(event, HealthChanged) and event.new == "down"] == [
        reason
    ]


def test_codes_that_are_not_configured_as_fatal_are_shown_and_change_no_health() -> None:
    rig = DevicesRig(want(fatal=frozenset({48})))
    rig.scraped(5.0)
    rig.state.observed(KEY, page(gpu("0", xids=(79,))), 5.0, 0.1, 100)
    assert rig.health("1:1", 5.2) == ("healthy", "")
    assert rig.of("1:1").devices[0].xids == (79,)


def test_a_dead_server_is_down_for_its_own_reason_whatever_its_accelerators_report() -> None:
    rig = DevicesRig()
    rig.state.observed(KEY, page(gpu("0", xids=(79,))), 5.0, 0.1, 100)
    rig.store.failed("1:1", "refused", "connection refused", 6.0, 0.0)
    assert rig.health("1:1", 6.0) == (Health.DOWN, "refused")


def test_accelerators_outlive_a_restart_of_the_server() -> None:
    rig = DevicesRig()
    rig.store.observed("1:1", Extraction({"start_time_seconds": 1.0}, (), ()), 5.0, 0.0, 10)
    rig.state.observed(KEY, page(gpu("0", xids=(79,))), 5.0, 0.1, 100)
    rig.store.observed("1:1", Extraction({"start_time_seconds": 2.0}, (), ()), 6.0, 0.0, 10)
    assert rig.health("1:1", 6.0) == ("down", "accelerator_xid")


def test_a_device_that_another_pod_uses_leaves_its_endpoint() -> None:
    rig = DevicesRig()
    rig.state.observed(KEY, page(gpu("0", xids=(79,))), 5.0, 0.1, 100)
    rig.state.observed(KEY, page(gpu("0", "n/other", xids=(79,))), 6.0, 0.1, 100)
    assert rig.of("1:1").devices == rig.of("1:1").lost == ()
    assert rig.health("1:1", 6.0) == ("unknown", "never_scraped")
    (view,) = rig.state.exporters()
    assert ([device.id for device in view.unmatched], dict(view.joined)) == (["0"], {})


def test_endpoints_that_are_added_later_get_the_readings_of_the_last_page() -> None:
    rig = DevicesRig(places=(EndpointLocation("1:1", pod="n/a"),))
    rig.state.observed(KEY, page(gpu("0"), gpu("1", "n/b")), 5.0, 0.1, 100)
    places = (EndpointLocation("1:1", pod="n/a"), EndpointLocation("2:1", pod="n/b"))
    rig.store.set_endpoints({"1:1": "vllm", "2:1": "vllm"}, 6.0)
    rig.state.set_pools([PoolDevices("pool", places, (want(),))], 6.0)
    assert [device.id for device in rig.of("2:1", 6.0).devices] == ["1"]
    rig.state.set_pools([PoolDevices("pool", places, ())], 7.0)
    assert all(view.accelerators == () for view in rig.store.snapshot(7.0).endpoints)
    assert rig.state.exporters() == []


def test_an_exporter_configured_for_a_node_belongs_to_it_whatever_node_its_page_names() -> None:
    places = (EndpointLocation("1:1", node="node-a"), EndpointLocation("2:1", node="node-b"))
    rig = DevicesRig(want(KEY, JoinKey.NODE, "node-a"), want(OTHER, JoinKey.NODE, "node-b"), places=places)
    rig.state.observed(KEY, page(gpu("0", "", node="dcgm-exporter-x7k2p")), 5.0, 0.1, 100)
    rig.state.observed(OTHER, page(gpu("1", "", node="dcgm-exporter-b52zz")), 5.0, 0.1, 100)
    assert [device.id for device in rig.of("1:1").devices] == ["0"]
    assert [device.id for device in rig.of("2:1").devices] == ["1"]


def test_an_endpoint_of_another_pool_can_make_a_device_ambiguous() -> None:
    delivered: dict[tuple[str, str], tuple[Accelerators, ...]] = {}

    def deliver(pool: str, address: str, found: tuple[Accelerators, ...], now: float) -> None:
        delivered[pool, address] = found

    state = DeviceState(deliver)
    mine = PoolDevices("mine", (EndpointLocation("1:1", node="node-a"),), (want(KEY, JoinKey.NODE, "node-a"),))
    state.set_pools([mine, PoolDevices("theirs", (EndpointLocation("1:2", node="node-a"),), ())], 0.0)
    state.observed(KEY, page(gpu("0", "")), 5.0, 0.1, 100)
    (view,) = state.exporters()
    assert [device.id for device in view.ambiguous] == ["0"]
    assert delivered["mine", "1:1"][0].devices == ()


def test_a_page_of_an_exporter_that_is_not_configured_any_more_is_ignored() -> None:
    rig = DevicesRig()
    before = rig.store.version
    rig.state.observed(OTHER, page(gpu("0")), 5.0, 0.1, 100)
    rig.state.failed(OTHER, "refused", "", 5.0, 0.1)
    assert rig.store.version == before


def test_a_node_without_an_exporter_withholds_the_readings_with_the_reason() -> None:
    places = (EndpointLocation("1:1", node="n-1", pod="n/a"), EndpointLocation("2:1", node="n-2", pod="n/b"))
    none = want(ExporterKey("dcgm", ""), node="n-2")._replace(known=False)
    rig = DevicesRig(want(node="n-1"), none, places=places)
    rig.state.observed(KEY, page(gpu("0")), 5.0, 0.1, 100)
    assert published.reading(rig.of("1:1"), UTILIZATION, 5.0) == Current(0.5, 5.0)
    assert published.reading(rig.of("2:1"), UTILIZATION, 5.0) == Unknown("no_exporter")
    assert [view.key for view in rig.state.exporters()] == [KEY]


def test_an_exporter_that_moved_keeps_its_readings_and_the_faults_that_it_has_reported() -> None:
    rig = DevicesRig()
    rig.scraped(5.0)
    rig.state.observed(KEY, page(gpu("0", xids=(79,)), gpu("2", "n/b")), 5.0, 0.1, 100)
    assert rig.health("1:1", 5.2) == ("down", "accelerator_xid")
    places = (EndpointLocation("1:1", pod="n/a"), EndpointLocation("2:1", pod="n/b"))
    rig.state.moved(KEY, OTHER)
    rig.state.set_pools([PoolDevices("pool", places, (want(OTHER),))], 6.0)
    assert rig.health("1:1", 6.0) == ("down", "accelerator_xid")
    assert published.reading(rig.of("2:1"), UTILIZATION, 6.0) == Current(0.5, 5.0)
    rig.state.observed(OTHER, page(gpu("2", "n/b")), 7.0, 0.1, 100)  # the card does not come back with the new pod
    assert rig.health("1:1", 7.2) == ("down", "accelerator_xid")
    rig.state.observed(OTHER, page(gpu("0"), gpu("2", "n/b")), 8.0, 0.1, 100)
    rig.scraped(8.0)
    assert rig.health("1:1", 8.2) == ("healthy", "")
    assert [view.key for view in rig.state.exporters()] == [OTHER]


def test_an_exporter_that_moved_to_an_address_that_is_known_changes_nothing_there() -> None:
    places = (EndpointLocation("1:1", pod="n/a"), EndpointLocation("2:1", pod="n/b"))
    rig = DevicesRig(want(), want(OTHER), places=places)
    rig.state.observed(OTHER, page(gpu("2", "n/b", busy=0.7)), 5.0, 0.1, 100)
    rig.state.moved(KEY, OTHER)
    rig.state.set_pools([PoolDevices("pool", places, (want(OTHER),))], 6.0)
    assert published.reading(rig.of("2:1"), UTILIZATION, 6.0) == Current(0.7, 5.0)
