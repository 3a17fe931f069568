"""Devices from the pages of exporters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.accelerators import exporter
from agent.accelerators.device import Device
from agent.accelerators.mapping import DeviceReader
from agent.accelerators.table import (
    ECC,
    MEMORY_TOTAL,
    MEMORY_USED,
    POWER,
    TEMPERATURE,
    UTILIZATION,
)
from agent.exposition.page import PageRefused
from agent.signals import RefusedValue


def read(name: str, *lines: str) -> tuple[Device, ...]:
    return DeviceReader(exporter(name)).extract("".join(f"{line}\n" for line in lines).encode(), whole=True).devices


@pytest.mark.parametrize("label", ["Hostname", "hostname"])
def test_both_spellings_of_the_host_name_are_the_node(label: str) -> None:
    (device,) = read("dcgm", f'DCGM_FI_DEV_GPU_UTIL{{gpu="0",UUID="GPU-a",{label}="node-a"}} 5')
    assert device.node == "node-a"


def test_exported_pod_takes_precedence_over_the_exporters_own_pod() -> None:
    labels = 'UUID="GPU-a",exported_namespace="llm",exported_pod="chat-0",namespace="gpu-operator",pod="exporter-x"'
    (device,) = read("dcgm", f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} 5")
    assert device.pod == "llm/chat-0"


@pytest.mark.parametrize(
    "blank",
    [
        "2147483632", "2147483635", "140737488355328", "140737488355331.000000", "9223372036854775792",
        "9223372036854775794", "9223372036854775795", "9.223372036854776e+18",
    ],
)  # fmt: skip
def test_a_blank_value_is_unknown_and_not_a_number(blank: str) -> None:
    (device,) = read(
        "dcgm",
        f'DCGM_FI_DEV_GPU_TEMP{{UUID="GPU-a"}} {blank}',
        f'DCGM_FI_DEV_FB_USED{{UUID="GPU-a"}} {blank}',
        f'DCGM_FI_DEV_XID_ERRORS{{UUID="GPU-a"}} {blank}',
        f'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{UUID="GPU-a"}} {blank}',
        'DCGM_FI_DEV_POWER_USAGE{UUID="GPU-a"} 70',
    )
    assert device.values == {POWER: 70.0}
    assert device.xids == ()


def test_the_utilization_of_the_card_replaces_an_engine_activity_that_was_not_measured() -> None:
    lines = [
        'DCGM_FI_PROF_GR_ENGINE_ACTIVE{UUID="GPU-a"} 140737488355330',
        'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-a"} 57',
    ]
    (device,) = read("dcgm", *lines)
    assert device.values[UTILIZATION] == 0.57
    (device,) = read("dcgm", lines[0].replace("140737488355330", "0.25"), lines[1])
    assert device.values[UTILIZATION] == 0.25


def test_a_mig_instance_has_the_utilization_of_its_engine_and_never_that_of_the_card() -> None:
    part = 'UUID="GPU-a",GPU_I_ID="7",GPU_I_PROFILE="1g.10gb"'
    (device,) = read("dcgm", f"DCGM_FI_DEV_GPU_UTIL{{{part}}} 100", f"DCGM_FI_DEV_FB_USED{{{part}}} 10")
    assert (device.id, device.part) == ("GPU-a/7", "7")
    assert device.values.keys() == {MEMORY_USED}


def test_a_fault_of_the_card_affects_each_of_its_parts_and_users() -> None:
    one, two = 'UUID="GPU-a",GPU_I_ID="1",pod="p1",namespace="n"', 'UUID="GPU-a",GPU_I_ID="2",pod="p2",namespace="n"'
    devices = read(
        "dcgm",
        f"DCGM_FI_DEV_FB_USED{{{one}}} 1",
        f"DCGM_FI_DEV_FB_USED{{{two}}} 1",
        'DCGM_FI_DEV_XID_ERRORS{UUID="GPU-a"} 79',
        'DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{UUID="GPU-a"} 3',
        'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-a"} 60',
    )
    assert [(device.pod, device.xids, device.values[ECC]) for device in devices] == [
        ("n/p1", (79,), 3.0),
        ("n/p2", (79,), 3.0),
    ]
    assert all(device.values[TEMPERATURE] == 60 for device in devices)
    shared = [f'UUID="GPU-b",pod="p{n}",namespace="n"' for n in (1, 2)]
    devices = read(
        "dcgm",
        *(f"DCGM_FI_DEV_GPU_UTIL{{{labels}}} 5" for labels in shared),
        f'DCGM_EXP_XID_ERRORS_COUNT{{{shared[0]},xid="48"}} 1',
    )
    assert [device.xids for device in devices] == [(48,), (48,)]


def test_a_time_shared_card_is_a_device_of_each_pod() -> None:
    devices = read("dcgm", *(f'DCGM_FI_DEV_GPU_UTIL{{UUID="GPU-a",pod="p{n}",namespace="n"}} 40' for n in (1, 2)))
    assert [(device.id, device.pod) for device in devices] == [("GPU-a", "n/p1"), ("GPU-a", "n/p2")]


@pytest.mark.parametrize("label", ['vgpu="1"', 'GPU_I_ID="3",GPU_I_PROFILE="1g.10gb",vgpu="1"'])
def test_a_share_of_a_card_or_of_a_part_has_only_values_that_hold_for_each_share(label: str) -> None:
    labels = f'UUID="GPU-a",{label},pod="p",namespace="n"'
    (device,) = read(
        "dcgm",
        f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{{{labels}}} 0.5",
        f"DCGM_FI_DEV_FB_USED{{{labels}}} 10",
        f"DCGM_FI_DEV_POWER_USAGE{{{labels}}} 70",
        f"DCGM_FI_DEV_GPU_TEMP{{{labels}}} 60",
        f"DCGM_FI_DEV_ECC_DBE_VOL_TOTAL{{{labels}}} 1",
    )
    assert (device.share, device.values) == ("share 1", {TEMPERATURE: 60.0, ECC: 1.0})


@pytest.mark.parametrize("exporter_name", ["tpu", "amd", "dcgm"])
def test_a_device_of_several_pods_is_a_share_for_each_whatever_the_vendor(exporter_name: str) -> None:
    name, labels = {
        "tpu": ("memory_used", 'accelerator_id="1-0"'),
        "amd": ("gpu_used_vram", 'serial_number="S1",gpu_id="0"'),
        "dcgm": ("DCGM_FI_DEV_FB_USED", 'UUID="GPU-a"'),
    }[exporter_name]
    lines = [f'{name}{{{labels},pod="{pod}",namespace="n"}} 5' for pod in ("a", "b")]
    assert [(device.pod, device.share, device.values) for device in read(exporter_name, *lines)] == [
        ("n/a", "several pods", {}),
        ("n/b", "several pods", {}),
    ]
    (alone,) = read(exporter_name, lines[0])
    assert (alone.share, set(alone.values)) == ("", {MEMORY_USED})


@pytest.mark.parametrize(
    ("kind", "whole"), [("spx", True), ("none", True), ("SPX", True), ("cpx", False), ("dpx", False)]
)
def test_the_label_of_an_amd_partition_says_whether_the_card_is_cut(kind: str, whole: bool) -> None:
    labels = f'serial_number="S1",gpu_id="0",gpu_partition_id="0",gpu_compute_partition_type="{kind}"'
    (device,) = read("amd", f"gpu_gfx_activity{{{labels}}} 12", f"gpu_package_power{{{labels}}} 255")
    assert (device.part == "") is whole
    assert (device.values == {UTILIZATION: 0.12, POWER: 255.0}) is whole


def test_a_page_that_only_describes_its_families_is_empty_and_shows_no_recovery() -> None:
    for page in (b"# TYPE DCGM_FI_DEV_GPU_UTIL gauge\n", b"# TYPE DCGM_FI_DEV_GPU_UTIL gauge\ngo_info 1\n"):
        with pytest.raises(PageRefused) as refused:
            DeviceReader(exporter("dcgm")).extract(page, whole=True)
        assert refused.value.reason == "empty"


def test_two_containers_of_a_pod_on_one_card_are_one_device() -> None:
    lines = [f'DCGM_FI_DEV_FB_USED{{UUID="GPU-a",pod="p",namespace="n",container="{c}"}} 10' for c in "ab"]
    (device,) = read("dcgm", *lines)
    assert device.values[MEMORY_USED] == 10 * 2**20


def test_total_memory_is_the_sum_of_its_parts() -> None:
    parts = {"USED": 10, "FREE": 20, "RESERVED": 3}
    (device,) = read("dcgm", *(f'DCGM_FI_DEV_FB_{name}{{UUID="GPU-a"}} {size}' for name, size in parts.items()))
    assert device.values[MEMORY_TOTAL] == 33 * 2**20


def test_series_of_switches_are_not_devices() -> None:
    devices = read("dcgm", 'DCGM_FI_DEV_XID_ERRORS{nvswitch="0"} 3', 'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-a"} 30')
    assert [device.id for device in devices] == ["GPU-a"]


def test_the_values_of_a_tpu_node_are_not_added_to_those_of_its_containers() -> None:
    (device,) = read(
        "tpu",
        'duty_cycle{accelerator_id="1-0",namespace="n",pod="p"} 50',
        'duty_cycle_node{accelerator_id="1-0"} 99',
        'duty_cycle_node{accelerator_id="1-1"} 98',
    )
    assert (device.pod, device.values) == ("n/p", {UTILIZATION: 0.5})


def test_the_page_of_a_node_without_devices_in_use_is_valid() -> None:
    assert read("tpu", 'duty_cycle_node{accelerator_id="1-0"} 0') == ()


@pytest.mark.parametrize("case", [str.lower, str.upper])
def test_amd_labels_are_read_in_upper_and_lower_case(case) -> None:
    labels = {"serial_number": "S1", "gpu_id": "0", "pod": "p", "namespace": "n", "hostname": "h"}
    text = ",".join(f'{case(key)}="{value}"' for key, value in labels.items())
    (device,) = read("amd", f"gpu_gfx_activity{{{text}}} 12", f"gpu_package_power{{{text}}} 255")
    assert (device.pod, device.node, device.values) == ("n/p", "h", {UTILIZATION: 0.12, POWER: 255.0})


def test_a_value_out_of_range_is_refused_and_reported() -> None:
    page = b'DCGM_FI_DEV_GPU_UTIL{UUID="GPU-a"} 101\nDCGM_FI_DEV_GPU_TEMP{UUID="GPU-a"} NaN\n'
    found = DeviceReader(exporter("dcgm")).extract(page, whole=True)
    assert found.devices[0].values == {}
    assert found.refused == (
        RefusedValue(UTILIZATION, "out_of_range", "1.01 of GPU-a"),
        RefusedValue(TEMPERATURE, "not_finite", "nan of GPU-a"),
    )


def test_a_duplicate_series_and_a_bad_line_only_affect_their_signals() -> None:
    page = (
        b'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-a"} 1\nDCGM_FI_DEV_GPU_TEMP{UUID="GPU-a"} 2\n'
        b'DCGM_FI_DEV_FB_USED{UUID="GPU-a"} 1\nDCGM_FI_DEV_POWER_USAGE{UUID="GPU-a"} twelve\n'
    )
    found = DeviceReader(exporter("dcgm")).extract(page, whole=True)
    assert found.devices[0].values.keys() == {MEMORY_USED}
    assert {(refusal.signal, refusal.reason) for refusal in found.refused} == {
        (TEMPERATURE, "duplicate_series"),
        (POWER, "bad_line"),
    }


def test_the_last_series_of_a_page_that_may_be_cut_off_is_refused() -> None:
    page = b'DCGM_FI_DEV_GPU_TEMP{UUID="GPU-a"} 1\nDCGM_FI_DEV_FB_USED{UUID="GPU-a"} 1\n'
    found = DeviceReader(exporter("dcgm")).extract(page)
    assert found.devices[0].values.keys() == {TEMPERATURE}
    assert ("cut_off" in {refusal.reason for refusal in found.refused}) is True


NUMBERS = st.one_of(st.integers(-5, 200), st.floats(), st.sampled_from([2**31 - 16, 2**47, 2**63 - 14]))


@given(st.lists(st.tuples(st.sampled_from("abc"), NUMBERS, NUMBERS, NUMBERS), max_size=4, unique_by=lambda row: row[0]))
def test_any_accepted_value_is_in_its_valid_range(rows) -> None:
    lines = [
        f'{name}{{UUID="GPU-{card}"}} {value}'
        for place, name in enumerate(("DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE"))
        for card, value in ((row[0], row[1 + place]) for row in rows)
    ]
    if not rows:
        return
    for device in read("dcgm", *lines):
        assert 0 <= device.values.get(UTILIZATION, 0) <= 1
        assert 0 <= device.values.get(MEMORY_USED, 0) <= 2.0**50
        assert 0 <= device.values.get(POWER, 0) <= 1e4
