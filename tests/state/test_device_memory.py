"""What is known of a device outlives its absence from a page, and an error outlives neither its remedy nor an
acknowledgement."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators import exporter
from agent.accelerators.combine import Accelerators
from agent.accelerators.device import XIDS, Device, Devices
from agent.accelerators.faults import Acknowledgement
from agent.accelerators.join import EndpointLocation, JoinKey
from agent.accelerators.mapping import DeviceReader
from agent.accelerators.table import ECC, MEMORY_TOTAL, POWER, TEMPERATURE, UTILIZATION
from agent.accelerators.xids import FATAL_XIDS, REMEDIES, Remedy, remedy_of
from agent.engines import engine
from agent.engines.mapping import Extractor
from agent.events import Event
from agent.events.accelerators import DeviceHealthChanged, DeviceLost
from agent.state.devices import DeviceState, ExporterKey, PoolDevices, Want
from agent.state.identity import Identity
from agent.state.store import RoutingStore

PAGES = Path(__file__).resolve().parents[1] / "recordings" / "accelerators" / "dcgm"
KEY = ExporterKey("dcgm", "node-a:9400", "/metrics")
CHAT = EndpointLocation("1:1", node="node-a", pod="llm/chat-0")
OTHER = EndpointLocation("2:1", node="node-a", pod="llm/chat-1")
CARD = "GPU-11111111-2222-3333-4444-555555555555"


def want(expected: int = 0, acknowledged: frozenset[Acknowledgement] = frozenset(), by: JoinKey = JoinKey.POD) -> Want:
    return Want(KEY, by, 15.0, frozenset(FATAL_XIDS), expected=expected, acknowledged=acknowledged)


def recorded(name: str) -> Devices:
    return DeviceReader(exporter("dcgm")).extract((PAGES / f"{name}.prom").read_bytes(), whole=True)


def gpu(name: str, *xids: int, pod: str = "llm/chat-0", unknown: tuple[str, ...] = ()) -> Device:
    return Device(name, name, {UTILIZATION: 0.5, POWER: 100.0}, pod=pod, xids=xids, unknown=unknown)


class MemoryRig:
    """A pool of two servers, the exporter of their devices, and all events. Each call is a second later."""

    def __init__(self, use: Want | None = None, places: tuple[EndpointLocation, ...] = (CHAT, OTHER)) -> None:
        self.now = 0.0
        self.events: list[Event] = []
        self.places = places
        self.store = RoutingStore("pool", stale_after=3.0, hook=self.events.append)
        self.store.set_endpoints({place.address: "vllm" for place in places}, 0.0)
        self.state = DeviceState(self.deliver, self.events.append)
        self.store.on_restart.append(lambda address, now: self.state.restarted("pool", address, now))
        self.use = use or want()
        self.configure(self.use)

    def configure(self, use: Want, places: tuple[EndpointLocation, ...] | None = None) -> None:
        self.now += 1
        self.state.set_pools([PoolDevices("pool", places or self.places, (use,))], self.now)

    def deliver(self, pool: str, address: str, found: tuple[Accelerators, ...], now: float) -> None:
        self.store.set_accelerators(address, found, now)

    def page(self, *devices: Device) -> None:
        self.observed(Devices(devices))

    def observed(self, devices: Devices) -> None:
        self.now += 1
        self.state.observed(KEY, devices, self.now, 0.0, 100)

    def scraped(self, start: float | None, address: str = "1:1", served: float = 7.0) -> None:
        """A page of the server: without a start time where that is None."""
        self.now += 1
        text = f'vllm:num_requests_running{{engine="0"}} 1\nvllm:prompt_tokens_total{{engine="0"}} {served}\n'
        text += "" if start is None else f"process_start_time_seconds {start}\n"
        extraction = Extractor(engine("vllm")).extract(text.encode(), whole=True)
        self.store.observed(address, extraction, self.now, 0.0, len(text))

    def refused(self, address: str = "1:1") -> None:
        self.now += 1
        self.store.failed(address, "refused", "connection refused", self.now, 0.0)

    def health(self, address: str = "1:1") -> tuple[str, str]:
        (found,) = (view for view in self.store.snapshot(self.now).endpoints if view.address == address)
        return found.health.value, found.reason

    def of(self, address: str = "1:1") -> Accelerators:
        (found,) = (view for view in self.store.snapshot(self.now).endpoints if view.address == address)
        (one,) = found.accelerators
        return one

    @property
    def unhealthy(self) -> list[str]:
        (view,) = self.state.exporters()
        return [fault.device for fault in view.faults]

    def changes(self) -> list[tuple[str, str]]:
        return [(event.device, event.reason) for event in self.events if isinstance(event, DeviceHealthChanged)]

    def losses(self) -> list[tuple[str, str, bool]]:
        return [(event.address, event.device, event.lost) for event in self.events if isinstance(event, DeviceLost)]


XID_DOWN = ("down", "accelerator_xid")


# -- a device is missing ---------------------------------------------------------------------------------------------


def test_a_card_with_xid_79_that_leaves_the_page_keeps_its_endpoint_down_and_its_sums_partial() -> None:
    rig = MemoryRig()
    rig.scraped(1.7e9)
    rig.observed(recorded("reported_two_cards_one_with_xid_79"))
    assert rig.health() == XID_DOWN
    rig.observed(recorded("reported_two_cards_one_gone"))
    rig.scraped(1.7e9)
    assert rig.health() == XID_DOWN
    found = rig.of()
    assert [device.id for device in found.lost] == [CARD]
    assert [fault.detail for fault in found.faults] == [
        "XID 79: the GPU has fallen off the bus; remedy: reboot the machine"
    ]
    assert set(found.withheld.values()) <= {"partial"}
    assert {MEMORY_TOTAL, POWER, UTILIZATION} <= found.withheld.keys()
    assert rig.unhealthy == [CARD]
    assert rig.changes() == [(CARD, "accelerator_xid")]  # and no recovery
    assert rig.losses() == [("1:1", CARD, True)]
    (view,) = rig.state.exporters()
    assert [device.id for device in view.lost["1:1"]] == [CARD]


def test_a_lost_card_that_is_back_and_well_makes_the_endpoint_healthy_and_its_sums_complete() -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b", 79))
    rig.page(gpu("a"))
    rig.page(gpu("a"), gpu("b"))
    rig.scraped(1.7e9)
    assert rig.health() == ("healthy", "")
    assert rig.of().readings[POWER].value == 200.0
    assert rig.losses() == [("1:1", "b", True), ("1:1", "b", False)]
    assert rig.changes() == [("b", "accelerator_xid"), ("b", "")]


def test_a_card_that_is_back_with_its_fault_still_has_it() -> None:
    rig = MemoryRig()
    for devices in ((gpu("a"), gpu("b", 79)), (gpu("a"),), (gpu("a"), gpu("b", 79))):
        rig.page(*devices)
        assert rig.unhealthy == ["b"]


def test_a_card_without_a_fault_that_leaves_the_page_makes_sums_partial_and_no_endpoint_unhealthy() -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b"))
    rig.page(gpu("a"))
    rig.scraped(1.7e9)
    assert rig.health() == ("healthy", "")
    assert rig.of().withheld[POWER] == rig.of().withheld[UTILIZATION] == "partial"
    assert [device.id for device in rig.of().lost] == ["b"]


def test_a_page_without_any_device_loses_all_of_them() -> None:
    rig = MemoryRig()
    rig.page(gpu("a", 79), gpu("b"))
    rig.page()
    rig.scraped(1.7e9)
    assert rig.health() == XID_DOWN
    assert [device.id for device in rig.of().lost] == ["a", "b"]


@pytest.mark.parametrize("xids", [(79,), ()])
def test_a_card_that_loses_its_pod_label_is_the_endpoints_with_the_state_on_the_page(xids: tuple[int, ...]) -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b", 79))
    rig.page(gpu("a"), gpu("b", *xids, pod=""))
    rig.scraped(1.7e9)
    assert rig.health() == (XID_DOWN if xids else ("healthy", ""))
    assert [device.id for device in rig.of().lost] == ["b"]
    assert rig.of().withheld[POWER] == "partial"


def test_an_endpoint_with_as_many_other_cards_has_moved() -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b", 79))
    rig.page(gpu("a"), gpu("c"))
    rig.scraped(1.7e9)
    assert rig.health() == ("healthy", "")
    assert rig.of().lost == ()
    assert rig.unhealthy == []
    assert rig.changes() == [("b", "accelerator_xid")]  # forgotten, which is no recovery


def test_a_card_that_is_another_pods_now_is_not_lost() -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b", 79))
    rig.page(gpu("a"), gpu("b", 79, pod="llm/chat-1"))
    assert rig.of().lost == ()
    assert rig.health("2:1") == XID_DOWN
    rig.scraped(1.7e9)
    assert rig.health() == ("healthy", "")


def test_with_a_configured_number_the_first_page_with_fewer_cards_is_partial() -> None:
    rig = MemoryRig(want(expected=2))
    rig.page(gpu("a"))
    assert (rig.of().missing, rig.of().withheld[POWER]) == (1, "partial")
    rig.page(gpu("a"), gpu("b"))
    assert (rig.of().missing, rig.of().readings[POWER].value) == (0, 200.0)
    rig.page(gpu("a"))
    assert (rig.of().missing, [device.id for device in rig.of().lost]) == (0, ["b"])


def test_with_a_configured_number_more_cards_that_were_seen_before_are_not_missed() -> None:
    rig = MemoryRig(want(expected=1))
    rig.page(gpu("a"), gpu("b"))
    rig.page(gpu("a"))
    assert (rig.of().lost, rig.of().readings[POWER].value) == ((), 100.0)


def test_by_node_too_a_card_that_leaves_the_page_is_lost() -> None:
    rig = MemoryRig(want(by=JoinKey.NODE), (EndpointLocation("1:1", node="node-a"),))
    rig.observed(recorded("reported_two_cards_one_with_xid_79"))
    rig.observed(recorded("reported_two_cards_one_gone"))
    assert [device.id for device in rig.of().lost] == [CARD]
    assert rig.health() == XID_DOWN


def test_an_endpoint_that_is_configured_elsewhere_starts_without_devices() -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b", 79))
    rig.page(gpu("a"))
    rig.configure(rig.use, (CHAT._replace(pod="llm/chat-9"), OTHER))
    assert (rig.of().devices, rig.of().lost) == ((), ())


def test_other_endpoints_that_come_and_go_change_nothing_for_a_lost_card() -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b", 79))
    rig.page(gpu("a"))
    rig.configure(rig.use, (CHAT,))
    assert rig.health() == XID_DOWN


CARDS = st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), unique_by=lambda row: row[0], max_size=2)


@given(st.lists(CARDS, max_size=6))
def test_no_page_ends_a_fault_of_a_card_unless_it_shows_the_card_well(pages) -> None:
    rig = MemoryRig()
    rig.page(gpu("a"), gpu("b", 79))
    well = False
    for cards in pages:
        rig.page(*(gpu(name, *(() if good else (79,))) for name, good in cards))
        shown = dict(cards)
        if "b" in shown:
            well = shown["b"]
        assert ("b" in rig.unhealthy) is not well


# -- an error is an event --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("later", [(45,), (13,), ()])
def test_an_error_ends_when_the_page_shows_none_and_not_with_a_later_harmless_one(later: tuple[int, ...]) -> None:
    rig = MemoryRig()
    rig.page(gpu("a", 79))
    rig.page(gpu("a", *later))
    assert rig.unhealthy == (["a"] if later else [])


@pytest.mark.parametrize("quantity", [XIDS, ECC])
def test_a_page_that_does_not_show_what_a_fault_is_read_from_does_not_end_it(quantity: str) -> None:
    rig = MemoryRig()
    rig.page(gpu("a", 79) if quantity == XIDS else gpu("a")._replace(values={ECC: 2.0}))
    rig.page(gpu("a", unknown=(quantity,)))
    assert rig.unhealthy == ["a"]
    rig.page(gpu("a"))
    assert rig.unhealthy == []


@pytest.mark.parametrize("text", ["", " 9223372036854775794"])
def test_a_page_of_the_exporter_without_a_measured_xid_does_not_end_it(text: str) -> None:
    rig = MemoryRig()
    page = (PAGES / "reported_xid_94.prom").read_text().replace("} 94", "} 79")
    rig.observed(DeviceReader(exporter("dcgm")).extract(page.encode(), whole=True))
    lines = [line for line in page.splitlines() if "XID" not in line]
    lines += [line.removesuffix(" 79") + text for line in page.splitlines() if text and line.endswith(" 79")]
    rig.observed(DeviceReader(exporter("dcgm")).extract("".join(f"{line}\n" for line in lines).encode(), whole=True))
    assert rig.unhealthy == [CARD]
    rig.observed(recorded("reported_one_card"))
    assert rig.unhealthy == []


def test_xid_94_ends_with_a_restart_of_the_server_that_is_seen_after_it() -> None:
    rig = MemoryRig()
    rig.scraped(1.76e9)
    rig.observed(recorded("reported_one_card"))
    assert rig.health() == ("healthy", "")
    rig.observed(recorded("reported_xid_94"))
    rig.scraped(1.76e9)
    assert rig.health() == XID_DOWN
    rig.scraped(1.760003e9)
    assert rig.health() == ("healthy", "")
    (ended,) = rig.of().ended
    assert (ended.fault.xid, ended.why, ended.at) == (94, "restarted", rig.now)
    assert rig.unhealthy == []
    rig.observed(recorded("reported_xid_94"))  # it is still on the page
    rig.scraped(1.760003e9)
    assert rig.health() == ("healthy", "")


@pytest.mark.parametrize("code", sorted(FATAL_XIDS.keys() - {94}))
def test_a_restart_of_the_server_does_not_end_an_error_with_another_remedy(code: int) -> None:
    rig = MemoryRig()
    rig.scraped(1.76e9)
    rig.page(gpu("a", code))
    rig.scraped(1.77e9)
    assert rig.health() == XID_DOWN


def test_a_restart_before_the_error_does_not_end_it() -> None:
    rig = MemoryRig()
    rig.scraped(1.76e9)
    rig.scraped(1.77e9)
    rig.page(gpu("a", 94))
    rig.scraped(1.77e9)
    assert rig.health() == XID_DOWN


def test_an_error_that_returns_after_the_restart_is_a_new_one() -> None:
    rig = MemoryRig()
    rig.scraped(1.76e9)
    rig.page(gpu("a", 94))
    rig.scraped(1.77e9)
    rig.page(gpu("a"))
    rig.page(gpu("a", 94))
    rig.scraped(1.77e9)
    assert rig.health() == XID_DOWN


def test_without_a_start_time_decreased_counters_or_a_refused_connection_are_a_restart() -> None:
    for restart in (lambda rig: rig.scraped(None, served=1.0), lambda rig: (rig.refused(), rig.scraped(None))):
        rig = MemoryRig()
        rig.scraped(None)
        rig.page(gpu("a", 94))
        rig.scraped(None)
        assert rig.health() == XID_DOWN
        restart(rig)
        assert rig.health() == ("healthy", "")


def test_a_refused_connection_of_a_process_that_still_runs_is_no_restart() -> None:
    rig = MemoryRig()
    rig.scraped(1.76e9)
    rig.page(gpu("a", 94))
    rig.refused()
    rig.scraped(1.76e9)
    assert rig.health() == XID_DOWN


def test_another_pod_behind_the_address_is_a_restart() -> None:
    place = EndpointLocation("1:1", node="node-a")
    rig = MemoryRig(want(by=JoinKey.NODE), (place,))
    rig.store.set_endpoints({"1:1": "vllm"}, rig.now, {"1:1": Identity("llm/chat-0")})
    rig.scraped(1.76e9)
    rig.page(gpu("a", 94, pod="")._replace(node="node-a"))
    assert rig.health() == XID_DOWN
    rig.store.set_endpoints({"1:1": "vllm"}, rig.now, {"1:1": Identity("llm/chat-1")})
    rig.configure(rig.use)
    rig.scraped(1.76e9)
    assert rig.health() == ("healthy", "")


def test_a_restart_of_one_server_does_not_end_the_error_for_another_on_the_same_card() -> None:
    rig = MemoryRig()
    for address in ("1:1", "2:1"):
        rig.scraped(1.76e9, address)
    rig.page(gpu("a", 94), gpu("a", 94, pod="llm/chat-1"))
    rig.scraped(1.77e9)
    assert rig.health() == ("healthy", "")
    assert rig.health("2:1") == XID_DOWN
    assert rig.unhealthy == ["a"]
    rig.scraped(1.77e9, "2:1")
    assert rig.unhealthy == []


@pytest.mark.parametrize("device", [CARD, "GPU-card"])
@pytest.mark.parametrize(("xids", "xid"), [((79,), 79), ((), 0)])
def test_an_acknowledged_fault_has_no_effect_until_it_begins_again(
    device: str, xids: tuple[int, ...], xid: int
) -> None:
    def card(errors: float, *codes: int) -> Device:
        return Device(CARD, "GPU-card", {ECC: errors}, pod="llm/chat-0", xids=codes)

    rig = MemoryRig()
    count = 0.0 if xids else 1.0
    rig.page(card(0.0))
    rig.page(card(count, *xids))
    rig.scraped(1.76e9)
    assert rig.health()[0] == "down"
    rig.configure(want(acknowledged=frozenset({Acknowledgement(device, xid)})))
    at = rig.now
    rig.page(card(count, *xids))
    rig.scraped(1.76e9)
    assert rig.health() == ("healthy", "")
    (ended,) = rig.of().ended
    assert (ended.why, ended.at) == ("acknowledged", at)
    assert rig.unhealthy == []
    if xids:
        rig.page(card(0.0))
    rig.page(card(2 * count, *xids))
    assert rig.health()[0] == "down"
    assert rig.unhealthy == [CARD]


def test_an_acknowledgement_is_of_one_device_and_one_error() -> None:
    rig = MemoryRig(want(acknowledged=frozenset({Acknowledgement("a", 79)})))
    rig.page(gpu("a", 79, 48), gpu("b", 79, pod="llm/chat-1"))
    assert rig.health() == rig.health("2:1") == XID_DOWN
    assert [fault.xid for fault in rig.of().faults] == [48]


def test_an_acknowledgement_covers_what_is_on_the_first_page_of_an_agent_that_starts() -> None:
    rig = MemoryRig(want(acknowledged=frozenset({Acknowledgement("a", 79)})))
    rig.page(gpu("a", 79))
    rig.scraped(1.76e9)
    assert rig.health() == ("healthy", "")


def test_every_fatal_error_has_a_remedy_and_an_unknown_one_is_for_support() -> None:
    assert FATAL_XIDS.keys() <= REMEDIES.keys()
    assert Remedy.NONE not in {remedy_of(code) for code in FATAL_XIDS}
    assert (remedy_of(94), remedy_of(95), remedy_of(79)) == (
        Remedy.RESTART_APPLICATION,
        Remedy.RESET_GPU,
        Remedy.REBOOT,
    )
    assert remedy_of(9999) == Remedy.SUPPORT


# -- shares ----------------------------------------------------------------------------------------------------------


def test_a_share_of_a_card_has_no_value_that_is_measured_for_the_card() -> None:
    places = (CHAT._replace(pod="llm/small-0"), OTHER._replace(pod="llm/small-1"))
    rig = MemoryRig(places=places)
    rig.observed(recorded("reported_time_sliced"))
    for address in ("1:1", "2:1"):
        found = rig.of(address)
        (device,) = found.devices
        assert device.share
        assert found.readings.keys() == {TEMPERATURE}
        assert {found.withheld[signal] for signal in (UTILIZATION, POWER, MEMORY_TOTAL)} == {"share"}


def test_an_error_on_one_share_of_a_card_affects_every_endpoint_on_it() -> None:
    page = (PAGES / "reported_time_sliced.prom").read_text()
    first = next(line for line in page.splitlines() if line.startswith("DCGM_FI_DEV_XID_ERRORS"))
    devices = DeviceReader(exporter("dcgm")).extract(page.replace(first, first[:-1] + "79").encode(), whole=True)
    assert {device.xids for device in devices.devices} == {(79,)}
