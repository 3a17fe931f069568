"""The page of an accelerator exporter for the one device that an emulated server runs on.

The device behaves as a real one under a model server. It is busy as soon as a request runs, with one request nearly as
much as with many. Power and temperature grow with the batch. Memory is constant, nine tenths of the card, as a server
allocates it at its start. The formats are those of dcgm-exporter, GKE's TPU device plugin and AMD's device metrics
exporter (tests/recordings has pages of them), restricted to the series that the agent or a dashboard reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from agent.emulator.faults import Faults

PATH: Final = "/accelerator/metrics"
_GIB: Final = 2.0**30
# The values that DCGM and AMD's exporter write for "not measured".
_DCGM_BLANK: Final = "9223372036854775794"
_AMD_BLANK: Final = "4294967295"

Labels = Mapping[str, str]
Row = tuple[str, str, str, Labels, str]


class EmulatedDevice(NamedTuple):
    """The state of the device: ratios, bytes, watts, degrees Celsius; `pod` is in the namespace `default`."""

    pod: str
    number: int
    busy: float
    memory_used: float
    memory_total: float
    power: float
    temperature: float


def emulated_device(number: int, running: int, max_num_seqs: int) -> EmulatedDevice:
    """The device under a server with `running` of at most `max_num_seqs` requests; `number` makes its name unique."""
    batch = min(1.0, running / max_num_seqs) if max_num_seqs else 0.0
    busy = 0.9 + 0.1 * batch if running else 0.0
    return EmulatedDevice(
        f"emulated-{number}", number, busy, 72 * _GIB, 80 * _GIB, 80.0 + (320 + 300 * batch) * busy, 34.0 + 40.0 * busy
    )


def page(kind: str, device: EmulatedDevice, faults: Faults) -> bytes:
    """The exporter's page; `faults.accelerator` is ok, unhealthy, ecc or blank."""
    rows = _KINDS[kind](device, faults)
    lines: list[str] = []
    for name, family_type, help_text, labels, value in rows:
        text = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines += [f"# HELP {name} {help_text}", f"# TYPE {name} {family_type}", f"{name}{{{text}}} {value}"]
    return ("\n".join(lines) + "\n").encode()


def _dcgm(device: EmulatedDevice, faults: Faults) -> list[Row]:
    labels = {
        "gpu": "0",
        "UUID": f"GPU-emulated-0000-0000-0000-{device.number:012d}",
        "pci_bus_id": "00000000:07:00.0",
        "device": "nvidia0",
        "modelName": "Emulated 80GB",
        "Hostname": "emulated-node",
        "DCGM_FI_DRIVER_VERSION": "580.95.05",
        "container": "server",
        "namespace": "default",
        "pod": device.pod,
    }
    blank = faults.accelerator == "blank"
    xid = faults.accelerator_xid if faults.accelerator == "unhealthy" else 0
    ecc = 1 if faults.accelerator == "ecc" else 0
    mib = 2.0**20

    def row(name: str, type: str, help: str, value: str) -> Row:
        return f"DCGM_FI_{name}", type, help, labels, _DCGM_BLANK if blank else value

    return [
        row("DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", f"{device.temperature:.0f}"),
        row("DEV_POWER_USAGE", "gauge", "Power draw (in W).", f"{device.power:.6f}"),
        row("DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", f"{device.busy * 100:.0f}"),
        row("DEV_XID_ERRORS", "gauge", "Value of the last XID error encountered.", f"{xid}"),
        row(
            "DEV_FB_FREE",
            "gauge",
            "Framebuffer memory free (in MiB).",
            f"{(device.memory_total - device.memory_used) / mib:.0f}",
        ),
        row("DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", f"{device.memory_used / mib:.0f}"),
        row("DEV_FB_RESERVED", "gauge", "Framebuffer memory reserved (in MiB).", "0"),
        row("DEV_ECC_DBE_VOL_TOTAL", "counter", "Total number of double-bit volatile ECC errors.", f"{ecc}"),
        row("DEV_ROW_REMAP_FAILURE", "gauge", "Whether remapping of rows has failed.", "0"),
        row("PROF_GR_ENGINE_ACTIVE", "gauge", "Ratio of time the graphics engine is active.", f"{device.busy:.6f}"),
    ]


def _tpu(device: EmulatedDevice, faults: Faults) -> list[Row]:
    chip = {
        "accelerator_id": f"{device.number:019d}-0",
        "make": "cloud-tpu",
        "model": "tpu7x",
        "tpu_topology": "2x2x1",
    }
    labels = {**chip, "container": "server", "namespace": "default", "pod": device.pod}
    cycle = "Percent of time when the TPU was actively processing"
    node: list[Row] = [("duty_cycle_node", "gauge", cycle, chip, f"{device.busy * 100:.0f}")]
    if faults.accelerator in {
        "unhealthy",
        "blank",
    }:  # the plugin has no series for it: the chip is missing from its page
        return node
    return [
        ("duty_cycle", "gauge", cycle, labels, f"{device.busy * 100:.0f}"),
        *node,
        ("memory_total", "gauge", "Total memory available on the TPU in bytes", labels, f"{device.memory_total:.0f}"),
        ("memory_used", "gauge", "Allocated TPU memory in bytes", labels, f"{device.memory_used:.0f}"),
    ]


def _amd(device: EmulatedDevice, faults: Faults) -> list[Row]:
    labels = {
        "card_model": "102-G30211-0C",
        "card_series": "Emulated OAM",
        "card_vendor": "AMD",
        "container": "server",
        "driver_version": "6.12.12",
        "gpu_compute_partition_type": "spx",
        "gpu_id": "0",
        "gpu_partition_id": "0",
        "hostname": "emulated-node",
        "namespace": "default",
        "pod": device.pod,
        "serial_number": f"{device.number:012d}",
    }
    blank = faults.accelerator == "blank"
    mib = 2.0**20

    def row(name: str, help: str, value: str) -> Row:
        return f"gpu_{name}", "gauge", help, labels, _AMD_BLANK if blank else value

    unhealthy = faults.accelerator in {"unhealthy", "ecc"}
    health = ("gpu_health", "gauge", "Health of the GPU (0 = Unhealthy | 1 = Healthy)", labels, str(int(not unhealthy)))
    return [
        row("gfx_activity", "Graphics engine usage percentage (0 - 100)", f"{device.busy * 100:.0f}"),
        row("used_vram", "Total VRAM memory used in MB", f"{device.memory_used / mib:.0f}"),
        row("total_vram", "Total VRAM available in MB", f"{device.memory_total / mib:.0f}"),
        row("package_power", "Current socket power in Watts", f"{device.power:.0f}"),
        row("junction_temperature", "Hotspot (aka junction) temperature value in Celsius", f"{device.temperature:.0f}"),
        row("ecc_uncorrect_total", "Total Uncorrectable ECC error count", str(int(faults.accelerator == "ecc"))),
        health,
    ]


_KINDS: Final[Mapping[str, Callable[[EmulatedDevice, Faults], list[Row]]]] = {"amd": _amd, "dcgm": _dcgm, "tpu": _tpu}
KINDS: Final = tuple(_KINDS)
