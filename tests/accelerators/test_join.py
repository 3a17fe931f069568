"""Each device is matched to the one endpoint that fits; one that fits none or several is reported and unmatched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators.combine import DeviceSet, combine
from agent.accelerators.device import Device
from agent.accelerators.faults import FAULTS
from agent.accelerators.join import EndpointLocation, JoinKey, join
from agent.accelerators.table import (
    COMBINED,
    ECC,
    HEALTHY,
    MEMORY_USED,
    POWER,
    REMAP_FAILED,
    UTILIZATION,
    DeviceCombination,
)
from tests.fakes.faults import fault_of

NAMES = st.sampled_from(["", "n/a", "n/b", "m/a"])
NODES = st.sampled_from(["", "x", "X", "y"])
DEVICES = st.lists(
    st.builds(Device, st.sampled_from("012345"), st.just("card"), st.just({}), pod=NAMES, node=NODES),
    unique_by=lambda device: (device.id, device.pod),
    max_size=6,
)
PLACES = st.lists(
    st.builds(EndpointLocation, st.sampled_from(["1:1", "2:1", "3:1"]), NODES, NAMES, st.just(frozenset())), max_size=5
)
BY = st.sampled_from(list(JoinKey))


@given(DEVICES, PLACES, BY)
def test_a_device_is_matched_unmatched_or_ambiguous(devices, places, by) -> None:
    found = join(devices, places, by)
    matched = [device for each in found.devices.values() for device in each]
    assert sorted([*matched, *found.unmatched, *found.ambiguous]) == sorted(devices)
    assert found.devices.keys() <= {place.address for place in places}


@given(DEVICES, PLACES, BY, st.data())
def test_the_order_of_devices_and_endpoints_does_not_matter(devices, places, by, data) -> None:
    before = join(devices, places, by)
    after = join(data.draw(st.permutations(devices)), data.draw(st.permutations(places)), by)
    assert {key: sorted(each) for key, each in after.devices.items()} == {
        key: sorted(each) for key, each in before.devices.items()
    }
    assert sorted(after.ambiguous) == sorted(before.ambiguous)


@given(DEVICES, PLACES)
def test_by_pod_a_device_is_only_matched_to_its_own_pod(devices, places) -> None:
    by_address = {
        address: {place.pod for place in places if place.address == address} for address in "1:1 2:1 3:1".split()
    }
    for address, mine in join(devices, places, JoinKey.POD).devices.items():
        assert all(device.pod and device.pod in by_address[address] for device in mine)


@given(DEVICES, PLACES, BY)
def test_one_more_endpoint_never_gives_a_device_to_another_endpoint_that_did_not_have_it(devices, places, by) -> None:
    before = join(devices, places, by)
    after = join(devices, [*places, EndpointLocation("9:1", "x", "n/a")], by)
    for address, mine in after.devices.items():
        if address != "9:1":
            assert set(map(repr, mine)) <= set(map(repr, before.devices.get(address, ())))


def test_an_endpoint_alone_on_its_node_has_its_devices_except_those_of_other_pods() -> None:
    devices = [
        Device("0", "0", {}, node="x"),
        Device("1", "1", {}, node="x", pod="n/other"),
        Device("2", "2", {}, node="x", pod="n/a"),
    ]
    found = join(devices, [EndpointLocation("1:1", "x", "n/a")], JoinKey.NODE)
    assert [device.id for device in found.devices["1:1"]] == ["0", "2"]
    assert [device.id for device in found.unmatched] == ["1"]


def test_two_servers_on_one_node_only_have_the_devices_that_they_list() -> None:
    devices = [Device(f"GPU-{n}", f"GPU-{n}", {}, number=str(n), node="x") for n in range(3)]
    blind = [EndpointLocation("1:1", "x"), EndpointLocation("1:2", "x")]
    assert join(devices, blind, JoinKey.NODE).ambiguous == tuple(devices)
    seeing = [
        EndpointLocation("1:1", "x", devices=frozenset({"0", "GPU-1"})),
        EndpointLocation("1:2", "x", devices=frozenset({"2"})),
    ]
    found = join(devices, seeing, JoinKey.NODE)
    assert {key: [device.number for device in each] for key, each in found.devices.items()} == {
        "1:1": ["0", "1"],
        "1:2": ["2"],
    }


def test_a_device_of_a_pod_with_several_ports_is_ambiguous() -> None:
    device = Device("0", "0", {}, pod="n/a")
    found = join([device], [EndpointLocation("1:1", "", "n/a"), EndpointLocation("1:2", "", "n/a")], JoinKey.POD)
    assert (found.devices, found.ambiguous) == ({}, (device,))


def test_an_endpoint_in_two_pools_counts_once() -> None:
    device = Device("0", "0", {}, pod="n/a")
    assert join([device], [EndpointLocation("1:1", "", "n/a")] * 2, JoinKey.POD).devices == {"1:1": (device,)}


VALUES = st.dictionaries(st.sampled_from(sorted(COMBINED)), st.floats(0, 1e6), max_size=6)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_combined_value_represents_every_device_or_is_withheld_with_the_reason(rows) -> None:
    devices = [Device(str(place), str(place), values) for place, values in enumerate(rows)]
    made = combine("dcgm", "x:1", DeviceSet(devices), 5.0, 15.0)
    assert made.readings.keys() | made.withheld.keys() == COMBINED.keys()
    assert not made.readings.keys() & made.withheld.keys()
    for signal, reading in made.readings.items():
        values = [row[signal] for row in rows]
        assert reading == ((max if COMBINED[signal] is DeviceCombination.MAX else sum)(values), 5.0)
    for signal, reason in made.withheld.items():
        assert reason == ("partial" if any(signal in row for row in rows) else "not_reported")


def test_utilization_is_the_maximum_and_memory_the_sum_over_devices() -> None:
    devices = [Device(str(n), str(n), {UTILIZATION: n / 4, MEMORY_USED: 10.0, POWER: 100.0}) for n in range(4)]
    made = combine("dcgm", "x:1", DeviceSet(devices), 0.0, 15.0).readings
    assert (made[UTILIZATION].value, made[MEMORY_USED].value, made[POWER].value) == (0.75, 40.0, 400.0)


def test_a_reading_has_the_time_of_its_oldest_device() -> None:
    devices = [
        Device("0", "0", {POWER: 1.0}, at=3.0),
        Device("1", "1", {POWER: 1.0}, at=2.0),
        Device("2", "2", {POWER: 1.0}),
    ]
    assert combine("gke", "p", DeviceSet(devices), 9.0, 15.0).readings[POWER].at == 2.0


def test_each_fault_makes_a_device_unhealthy_and_unknown_values_do_not() -> None:
    assert fault_of(Device("0", "0", {})) is None
    assert fault_of(Device("0", "0", {ECC: 0.0, REMAP_FAILED: 0.0, HEALTHY: 1.0}, xids=(13, 31, 43))) is None
    unhealthy = [
        Device("0", "0", {}, xids=(43, 79)),
        Device("0", "0", {ECC: 1.0}),
        Device("0", "0", {REMAP_FAILED: 1.0}),
        Device("0", "0", {HEALTHY: 0.0, ECC: 0.0}),
    ]
    found = [fault_of(device) for device in unhealthy]
    assert [fault.reason for fault in found if fault] == [
        "accelerator_xid", "accelerator_ecc", "accelerator_row_remap", "accelerator_unhealthy",
    ]  # fmt: skip
    assert {fault.reason for fault in found if fault} == FAULTS.keys()
    assert found[0] is not None
    assert found[0].detail == "XID 79: the GPU has fallen off the bus; remedy: reboot the machine"


def test_the_verdict_of_an_exporter_takes_precedence_over_its_error_count() -> None:
    assert fault_of(Device("0", "0", {ECC: 5.0, HEALTHY: 1.0})) is None
