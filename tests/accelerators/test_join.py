"""Each device goes to the one endpoint that it fits; what fits none or several is told and given to nobody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators.combine import combine
from agent.accelerators.device import Device
from agent.accelerators.faults import FATAL_XIDS, FAULTS, fault_of
from agent.accelerators.join import By, Place, join
from agent.accelerators.table import COMBINED, ECC, MEMORY_USED, POWER, REMAP_FAILED, UTILIZATION, WELL, Combine

NAMES = st.sampled_from(["", "n/a", "n/b", "m/a"])
NODES = st.sampled_from(["", "x", "X", "y"])
DEVICES = st.lists(
    st.builds(Device, st.sampled_from("012345"), st.just("card"), st.just({}), pod=NAMES, node=NODES),
    unique_by=lambda device: (device.id, device.pod),
    max_size=6,
)
PLACES = st.lists(
    st.builds(Place, st.sampled_from(["1:1", "2:1", "3:1"]), NODES, NAMES, st.just(frozenset())), max_size=5
)
BY = st.sampled_from(list(By))


@given(DEVICES, PLACES, BY)
def test_a_device_is_in_one_place_and_nowhere_else(devices, places, by) -> None:
    found = join(devices, places, by)
    told = [device for each in found.devices.values() for device in each]
    assert sorted([*told, *found.unmatched, *found.ambiguous]) == sorted(devices)
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
def test_by_pod_a_device_only_goes_to_its_own_pod(devices, places) -> None:
    by_address = {
        address: {place.pod for place in places if place.address == address} for address in "1:1 2:1 3:1".split()
    }
    for address, mine in join(devices, places, By.POD).devices.items():
        assert all(device.pod and device.pod in by_address[address] for device in mine)


@given(DEVICES, PLACES, BY)
def test_one_more_endpoint_never_gives_a_device_to_another_that_had_none_of_it(devices, places, by) -> None:
    before = join(devices, places, by)
    after = join(devices, [*places, Place("9:1", "x", "n/a")], by)
    for address, mine in after.devices.items():
        if address != "9:1":
            assert set(map(repr, mine)) <= set(map(repr, before.devices.get(address, ())))


def test_an_endpoint_with_a_machine_for_itself_has_what_is_there_unless_it_is_another_pod_s() -> None:
    devices = [
        Device("0", "0", {}, node="x"),
        Device("1", "1", {}, node="x", pod="n/other"),
        Device("2", "2", {}, node="x", pod="n/a"),
    ]
    found = join(devices, [Place("1:1", "x", "n/a")], By.NODE)
    assert [device.id for device in found.devices["1:1"]] == ["0", "2"]
    assert [device.id for device in found.unmatched] == ["1"]


def test_two_servers_of_one_machine_have_its_devices_only_where_they_name_them() -> None:
    devices = [Device(f"GPU-{n}", f"GPU-{n}", {}, number=str(n), node="x") for n in range(3)]
    blind = [Place("1:1", "x"), Place("1:2", "x")]
    assert join(devices, blind, By.NODE).ambiguous == tuple(devices)
    seeing = [Place("1:1", "x", devices=frozenset({"0", "GPU-1"})), Place("1:2", "x", devices=frozenset({"2"}))]
    found = join(devices, seeing, By.NODE)
    assert {key: [device.number for device in each] for key, each in found.devices.items()} == {
        "1:1": ["0", "1"],
        "1:2": ["2"],
    }


def test_several_ports_of_one_pod_cannot_tell_whose_device_it_is() -> None:
    device = Device("0", "0", {}, pod="n/a")
    found = join([device], [Place("1:1", "", "n/a"), Place("1:2", "", "n/a")], By.POD)
    assert (found.devices, found.ambiguous) == ({}, (device,))


def test_an_endpoint_of_two_pools_counts_once() -> None:
    device = Device("0", "0", {}, pod="n/a")
    assert join([device], [Place("1:1", "", "n/a")] * 2, By.POD).devices == {"1:1": (device,)}


VALUES = st.dictionaries(st.sampled_from(sorted(COMBINED)), st.floats(0, 1e6), max_size=6)


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_a_combined_value_stands_for_every_device_or_is_withheld_with_the_reason(rows) -> None:
    devices = [Device(str(place), str(place), values) for place, values in enumerate(rows)]
    made = combine("dcgm", "x:1", devices, 5.0, 15.0, FATAL_XIDS)
    assert made.readings.keys() | made.withheld.keys() == COMBINED.keys()
    assert not made.readings.keys() & made.withheld.keys()
    for signal, reading in made.readings.items():
        values = [row[signal] for row in rows]
        assert reading == ((max if COMBINED[signal] is Combine.MAX else sum)(values), 5.0)
    for signal, reason in made.withheld.items():
        assert reason == ("partial" if any(signal in row for row in rows) else "not_reported")


def test_the_ranks_of_a_server_are_as_busy_as_the_busiest_and_use_what_all_use() -> None:
    devices = [Device(str(n), str(n), {UTILIZATION: n / 4, MEMORY_USED: 10.0, POWER: 100.0}) for n in range(4)]
    made = combine("dcgm", "x:1", devices, 0.0, 15.0, FATAL_XIDS).readings
    assert (made[UTILIZATION].value, made[MEMORY_USED].value, made[POWER].value) == (0.75, 40.0, 400.0)


def test_a_sample_is_as_old_as_its_oldest_device() -> None:
    devices = [
        Device("0", "0", {POWER: 1.0}, at=3.0),
        Device("1", "1", {POWER: 1.0}, at=2.0),
        Device("2", "2", {POWER: 1.0}),
    ]
    assert combine("gke", "p", devices, 9.0, 15.0, ()).readings[POWER].at == 2.0


def test_each_fault_makes_a_device_sick_and_silence_makes_none() -> None:
    assert fault_of(Device("0", "0", {}), FATAL_XIDS) is None
    assert fault_of(Device("0", "0", {ECC: 0.0, REMAP_FAILED: 0.0, WELL: 1.0}, xids=(13, 31, 43)), FATAL_XIDS) is None
    sick = [
        Device("0", "0", {}, xids=(43, 79)),
        Device("0", "0", {ECC: 1.0}),
        Device("0", "0", {REMAP_FAILED: 1.0}),
        Device("0", "0", {WELL: 0.0, ECC: 0.0}),
    ]
    found = [fault_of(device, FATAL_XIDS) for device in sick]
    assert [fault.reason for fault in found if fault] == [
        "accelerator_xid", "accelerator_ecc", "accelerator_row_remap", "accelerator_unwell",
    ]  # fmt: skip
    assert {fault.reason for fault in found if fault} == FAULTS.keys()
    assert found[0] is not None
    assert found[0].detail == "XID 79: the GPU has fallen off the bus"


def test_an_exporter_that_judges_by_its_own_limits_goes_before_a_count_of_errors() -> None:
    assert fault_of(Device("0", "0", {ECC: 5.0, WELL: 1.0}), FATAL_XIDS) is None
