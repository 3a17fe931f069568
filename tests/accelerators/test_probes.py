"""NVML and Cloud Monitoring: what they say becomes devices, what they refuse is unknown, what lacks is named."""

from __future__ import annotations

import builtins
from typing import Any

import pytest

from agent.accelerators import gke, nvml
from agent.accelerators.faults import FATAL_XIDS, fault_of
from agent.accelerators.gke import METRICS, Gke
from agent.accelerators.nvml import Nvml
from agent.accelerators.probe import REASONS, ProbeFailed
from agent.accelerators.table import (
    ECC,
    MEMORY_TOTAL,
    MEMORY_USED,
    POWER,
    REMAP_FAILED,
    TEMPERATURE,
    UTILIZATION,
)
from tests.fakes.monitoring import FakeMonitoring, Sample
from tests.fakes.nvml import Card, FakeNvml, Memory


def probe(fake: FakeNvml) -> Nvml:
    return Nvml("here", lambda: fake)


def test_a_card_is_read_in_our_units() -> None:
    (device,) = probe(FakeNvml(Card("GPU-a"))).devices(0.0, 0.0)
    assert (device.id, device.number, device.node, device.model) == ("GPU-a", "0", "here", "NVIDIA H100 80GB HBM3")
    assert device.values == {
        UTILIZATION: 0.5, MEMORY_USED: 72.0 * 2**30, MEMORY_TOTAL: 80.0 * 2**30, POWER: 300.0, TEMPERATURE: 60.0,
        ECC: 0.0, REMAP_FAILED: 0.0,
    }  # fmt: skip
    assert fault_of(device, FATAL_XIDS) is None


def test_what_a_card_does_not_support_is_unknown_and_the_rest_is_read() -> None:
    (device,) = probe(FakeNvml(Card("GPU-a", busy=None, milliwatts=None, ecc=None, mig=None))).devices(0.0, 0.0)
    assert device.values.keys() == {MEMORY_USED, MEMORY_TOTAL, TEMPERATURE, REMAP_FAILED}


def test_instances_of_a_card_have_memory_of_their_own_the_card_s_health_and_no_utilization() -> None:
    parts = {0: Card("MIG-1", Memory(10, 8, 2), instance=7), 3: Card("MIG-2", Memory(20, 15, 5), instance=9)}
    devices = probe(FakeNvml(Card("GPU-a", busy=None, mig=True, ecc=1, parts=parts))).devices(0.0, 0.0)
    assert [(device.id, device.card, device.part) for device in devices] == [
        ("MIG-1", "GPU-a", "7"),
        ("MIG-2", "GPU-a", "9"),
    ]
    assert [device.values[MEMORY_USED] for device in devices] == [2.0, 5.0]
    assert all(device.values.keys().isdisjoint({UTILIZATION, POWER}) for device in devices)
    assert all(fault_of(device, FATAL_XIDS) is not None for device in devices)


def test_errors_are_gathered_as_they_happen_and_stay() -> None:
    card = Card("GPU-a")
    fake = FakeNvml(card, Card("GPU-b"))
    mine = probe(fake)
    assert [device.xids for device in mine.devices(0.0, 0.0)] == [(), ()]
    fake.happens(card, 43)
    fake.happens(card, 79)
    for _ in range(2):
        assert [device.xids for device in mine.devices(0.0, 0.0)] == [(43, 79), ()]


def test_a_card_that_is_lost_is_unwell_under_its_own_name_and_the_others_are_read() -> None:
    card = Card("GPU-a")
    mine = probe(FakeNvml(card, Card("GPU-b")))
    mine.devices(0.0, 0.0)
    card.lost = True
    lost, other = mine.devices(0.0, 0.0)
    found = fault_of(lost, FATAL_XIDS)
    assert found is not None
    assert (lost.id, found.reason) == ("GPU-a", "accelerator_unwell")
    assert other.values[UTILIZATION] == 0.5


def test_a_machine_that_tells_no_events_is_read_without_them() -> None:
    (device,) = probe(FakeNvml(Card("GPU-a"), events=False)).devices(0.0, 0.0)
    assert device.xids == ()


def test_a_machine_without_a_driver_says_so_and_is_asked_again() -> None:
    fake = FakeNvml(Card("GPU-a"), driver=False)
    mine = probe(fake)
    with pytest.raises(ProbeFailed, match="is NVIDIA's driver loaded") as failed:
        mine.devices(0.0, 0.0)
    assert failed.value.reason == "client_error"
    fake.driver = True
    assert len(mine.devices(0.0, 0.0)) == 1
    mine.close()
    assert fake.initialised == 0


@pytest.mark.parametrize(("module", "package"), [(nvml, "nvidia-ml-py"), (gke, "google-cloud-monitoring")])
def test_a_library_that_is_not_installed_is_named_with_what_to_install(
    module: Any, package: str, monkeypatch: Any
) -> None:
    real = builtins.__import__

    def none(name: str, *more: Any, **named: Any) -> Any:
        if name in {"pynvml", "google.cloud"}:
            raise ImportError(name)
        return real(name, *more, **named)

    monkeypatch.setattr(builtins, "__import__", none)
    with pytest.raises(
        ProbeFailed, match=rf"{package}; install it with: pip install 'inference-gateway-agent"
    ) as failed:
        module.library()
    assert failed.value.reason == "not_installed"
    assert failed.value.reason in REASONS


DUTY, USED, TOTAL = (METRICS[signal][0] for signal in (UTILIZATION, MEMORY_USED, MEMORY_TOTAL))
WALL = 1_800_000_000.0


def cluster(fake: FakeMonitoring) -> Gke:
    return Gke("my-project", "europe-west4", "c", 10.0, lambda: fake)


def test_each_accelerator_carries_the_time_of_its_newest_sample_on_our_clock() -> None:
    fake = FakeMonitoring(
        Sample(DUTY, "llm/chat-0", "1", 80, WALL - 190),
        Sample(DUTY, "llm/chat-0", "1", 60, WALL - 130),
        Sample(USED, "llm/chat-0", "1", 2**34, WALL - 140),
        Sample(TOTAL, "llm/chat-0", "1", 2**35, WALL - 140),
        Sample(DUTY, "llm/chat-1", "2", 5, WALL - 150),
        Sample(DUTY, "llm/chat-2", "3", 99, WALL - 60),  # not shown yet
        Sample(DUTY, "llm/chat-9", "9", 99, WALL - 150, cluster="another"),
        now=WALL,
    )
    found = {device.pod: device for device in cluster(fake).devices(1000.0, WALL)}
    assert found.keys() == {"llm/chat-0", "llm/chat-1"}
    one = found["llm/chat-0"]
    assert one.values == {UTILIZATION: 0.6, MEMORY_USED: 2.0**34, MEMORY_TOTAL: 2.0**35}
    assert (one.at, one.model, one.container) == (1000.0 - 140, "nvidia-l4", "vllm")
    assert len(fake.requests) == 3


def test_an_idle_accelerator_is_a_true_zero() -> None:
    fake = FakeMonitoring(Sample(DUTY, "llm/chat-0", "1", 0, WALL - 130), now=WALL)
    (device,) = cluster(fake).devices(0.0, WALL)
    assert device.values == {UTILIZATION: 0.0}


def test_what_google_refuses_is_told_and_asked_again_later() -> None:
    fake = FakeMonitoring(now=WALL, denied=True)
    mine = cluster(fake)
    with pytest.raises(
        ProbeFailed, match=r"Cloud Monitoring: Permission monitoring\.timeSeries\.list denied"
    ) as failed:
        mine.devices(0.0, WALL)
    assert failed.value.reason == "client_error"
    fake.denied = False
    assert mine.devices(0.0, WALL) == []
    mine.close()
    assert fake.closed == 1
