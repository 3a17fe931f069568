"""Devices from NVML and Cloud Monitoring through their own clients; refused quantities are unknown."""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pynvml
import pytest

from agent.accelerators import gke, nvml
from agent.accelerators.device_source import REASONS, DeviceSourceFailed
from agent.accelerators.gke import METRICS, Gke
from agent.accelerators.nvml import Nvml
from agent.accelerators.table import (
    ECC,
    MEMORY_TOTAL,
    MEMORY_USED,
    POWER,
    REMAP_FAILED,
    TEMPERATURE,
    UTILIZATION,
)
from tests.fakes.faults import fault_of
from tests.fakes.monitoring import Monitoring, MonitoringSample, RpcError, serving
from tests.fakes.nvml import Card, Memory, NvmlLibrary


@pytest.fixture(autouse=True)
def _no_library_is_left_below_the_package() -> Iterator[None]:
    yield
    pynvml.nvmlLib = None
    pynvml._nvmlGetFunctionPointer_cache.clear()


def probe(library: NvmlLibrary) -> Nvml:
    return Nvml("here", library.load)


def test_a_card_is_read_in_the_units_of_the_signals() -> None:
    (device,) = probe(NvmlLibrary(Card("GPU-a"))).devices(0.0, 0.0)
    assert (device.id, device.number, device.node, device.model) == ("GPU-a", "0", "here", "NVIDIA H100 80GB HBM3")
    assert device.values == {
        UTILIZATION: 0.5, MEMORY_USED: 72.0 * 2**30, MEMORY_TOTAL: 80.0 * 2**30, POWER: 300.0, TEMPERATURE: 60.0,
        ECC: 0.0, REMAP_FAILED: 0.0,
    }  # fmt: skip
    assert fault_of(device) is None


def test_an_unsupported_quantity_is_unknown_and_the_rest_is_read() -> None:
    (device,) = probe(NvmlLibrary(Card("GPU-a", busy=None, milliwatts=None, ecc=None, mig=None))).devices(0.0, 0.0)
    assert device.values.keys() == {MEMORY_USED, MEMORY_TOTAL, TEMPERATURE, REMAP_FAILED}


def test_mig_instances_have_their_own_memory_the_health_of_the_card_and_no_utilization() -> None:
    parts = {0: Card("MIG-1", Memory(10, 8, 2), instance=7), 3: Card("MIG-2", Memory(20, 15, 5), instance=9)}
    devices = probe(NvmlLibrary(Card("GPU-a", busy=None, mig=True, ecc=1, parts=parts))).devices(0.0, 0.0)
    assert [(device.id, device.card, device.part) for device in devices] == [
        ("MIG-1", "GPU-a", "7"),
        ("MIG-2", "GPU-a", "9"),
    ]
    assert [device.values[MEMORY_USED] for device in devices] == [2.0, 5.0]
    assert all(device.values.keys().isdisjoint({UTILIZATION, POWER}) for device in devices)
    assert all(fault_of(device) is not None for device in devices)


@pytest.mark.parametrize("name", ["nvmlDeviceGetPowerUsage", "nvmlDeviceGetMigMode", "nvmlDeviceGetRemappedRows"])
@pytest.mark.parametrize("how", ["missing", "failing"])
def test_a_quantity_that_is_missing_in_an_older_driver_or_fails_is_unknown_and_the_rest_is_read(
    how: str, name: str
) -> None:
    library = NvmlLibrary(Card("GPU-a"))
    getattr(library, how).add(name)
    (device,) = probe(library).devices(0.0, 0.0)
    assert {UTILIZATION, MEMORY_USED, MEMORY_TOTAL, TEMPERATURE, ECC} <= device.values.keys()
    assert (POWER in device.values) is (name != "nvmlDeviceGetPowerUsage")


def test_xid_errors_are_collected_and_kept() -> None:
    card = Card("GPU-a")
    fake = NvmlLibrary(card, Card("GPU-b"))
    mine = probe(fake)
    assert [device.xids for device in mine.devices(0.0, 0.0)] == [(), ()]
    fake.xid_error(card, 43)
    fake.xid_error(card, 79)
    for _ in range(2):
        assert [device.xids for device in mine.devices(0.0, 0.0)] == [(43, 79), ()]


def test_a_lost_card_is_unhealthy_under_its_own_id_and_the_others_are_read() -> None:
    card = Card("GPU-a")
    mine = probe(NvmlLibrary(card, Card("GPU-b")))
    mine.devices(0.0, 0.0)
    card.lost = True
    lost, other = mine.devices(0.0, 0.0)
    found = fault_of(lost)
    assert found is not None
    assert (lost.id, found.reason) == ("GPU-a", "accelerator_unhealthy")
    assert other.values[UTILIZATION] == 0.5


def test_a_machine_without_events_is_read_without_them() -> None:
    (device,) = probe(NvmlLibrary(Card("GPU-a"), events=False)).devices(0.0, 0.0)
    assert device.xids == ()


def test_a_missing_driver_is_reported_and_the_machine_read_again_later() -> None:
    fake = NvmlLibrary(Card("GPU-a"), driver=False)
    mine = probe(fake)
    with pytest.raises(DeviceSourceFailed, match="is NVIDIA's driver loaded") as failed:
        mine.devices(0.0, 0.0)
    assert failed.value.reason == "client_error"
    fake.driver = True
    assert len(mine.devices(0.0, 0.0)) == 1
    mine.close()
    assert fake.initialised == 0


def test_a_missing_nvidia_library_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_there(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(pynvml, "CDLL", not_there)
    with pytest.raises(
        DeviceSourceFailed, match=r"Shared Library Not Found; is NVIDIA's driver loaded on this machine\?"
    ):
        Nvml("here").devices(0.0, 0.0)


@pytest.mark.parametrize(("module", "package"), [(nvml, "nvidia-ml-py"), (gke, "google-cloud-monitoring")])
def test_a_client_library_that_is_not_installed_is_reported_with_what_to_install(
    module: Any, package: str, monkeypatch: Any
) -> None:
    real = builtins.__import__

    def none(name: str, *more: Any, **named: Any) -> Any:
        if name in {"pynvml", "google.cloud"}:
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(
        DeviceSourceFailed, match=rf"{package}; install it with: pip install 'inference-gateway-agent"
    ) as failed:
        module.library()
    assert failed.value.reason == "not_installed"
    assert failed.value.reason in REASONS


DUTY, USED, TOTAL = (METRICS[signal][0] for signal in (UTILIZATION, MEMORY_USED, MEMORY_TOTAL))
WALL = 1_800_000_000.0


def cluster(service: Monitoring) -> Gke:
    return Gke("my-project", "europe-west4", "c", 10.0, service.load)


def test_each_accelerator_has_the_monotonic_time_of_its_newest_sample() -> None:
    samples = [
        MonitoringSample(DUTY, "llm/chat-0", "1", 80, WALL - 190),
        MonitoringSample(DUTY, "llm/chat-0", "1", 60, WALL - 130),
        MonitoringSample(USED, "llm/chat-0", "1", 2**34, WALL - 140),
        MonitoringSample(TOTAL, "llm/chat-0", "1", 2**35, WALL - 140),
        MonitoringSample(DUTY, "llm/chat-1", "2", 5, WALL - 150),
        MonitoringSample(DUTY, "llm/chat-2", "3", 99, WALL - 60),  # not visible yet
        MonitoringSample(DUTY, "llm/chat-9", "9", 99, WALL - 150, cluster="another"),
    ]
    with serving(*samples, now=WALL) as service:
        found = {device.pod: device for device in cluster(service).devices(1000.0, WALL)}
    assert found.keys() == {"llm/chat-0", "llm/chat-1"}
    one = found["llm/chat-0"]
    assert one.values == {UTILIZATION: 0.6, MEMORY_USED: 2.0**34, MEMORY_TOTAL: 2.0**35}
    assert (one.at, one.model, one.container) == (1000.0 - 140, "nvidia-l4", "vllm")
    assert sorted(service.types) == sorted([DUTY, USED, TOTAL])


def test_every_page_of_a_response_is_read() -> None:
    samples = [MonitoringSample(DUTY, f"llm/chat-{number}", str(number), number, WALL - 130) for number in range(7)]
    with serving(*samples, now=WALL) as service:
        found = {device.pod: device.values[UTILIZATION] for device in cluster(service).devices(0.0, WALL)}
    assert found == {f"llm/chat-{number}": number / 100 for number in range(7)}
    assert service.pages == 4 + 2  # of two series each; the other two types have none


@pytest.mark.parametrize(("percent", "ratio"), [(0, 0.0), (0.5, 0.005), (100, 1.0)])
def test_the_utilization_of_an_idle_accelerator_is_zero_and_a_percentage_becomes_a_ratio(
    percent: float, ratio: float
) -> None:
    with serving(MonitoringSample(DUTY, "llm/chat-0", "1", percent, WALL - 130), now=WALL) as service:
        (device,) = cluster(service).devices(0.0, WALL)
    assert device.values == {UTILIZATION: ratio}


@pytest.mark.parametrize(
    "refusal",
    [
        RpcError(grpc.StatusCode.PERMISSION_DENIED, "Permission monitoring.timeSeries.list denied"),
        RpcError(grpc.StatusCode.UNAVAILABLE, "The service is currently unavailable."),
        RpcError(grpc.StatusCode.RESOURCE_EXHAUSTED, "Quota exceeded"),
    ],
    ids=lambda refusal: refusal.code.name,
)
def test_an_error_of_the_service_is_reported_at_once_and_the_service_read_again_later(refusal: RpcError) -> None:
    with serving(now=WALL) as service:
        service.refusal = refusal
        mine = cluster(service)
        with pytest.raises(DeviceSourceFailed, match=rf"Cloud Monitoring: .*{re.escape(str(refusal))}") as failed:
            mine.devices(0.0, WALL)
        assert failed.value.reason == "client_error"
        assert service.pages == 1
        service.refusal = None
        assert mine.devices(0.0, WALL) == []
        mine.close()


def test_missing_credentials_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(DeviceSourceFailed, match=r"Cloud Monitoring: File .*none\.json was not found"):
        Gke("my-project", "europe-west4", "c", 1.0).devices(0.0, WALL)
