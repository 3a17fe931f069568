"""The page of an accelerator exporter beside an emulated server, with the one device that the server runs on.

It follows the batch as a real device does: busy as soon as anything runs, with one request nearly as much as with
many; power and heat grow with the batch; memory is what a server takes at its start, nine tenths of the card. The
formats are those of dcgm-exporter, GKE's TPU device plugin and AMD's device metrics exporter (see the golden pages of
the tests), with the series that somebody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from agent.emulator.faults import Faults

PATH: Final = "/accelerator/metrics"
_GIB: Final = 2.0**30
# What DCGM and AMD's exporter write for "not measured".
_DCGM_BLANK: Final = "9223372036854775794"
_AMD_BLANK: Final = "4294967295"

Labels = Mapping[str, str]
Row = tuple[str, str, str, Labels, str]


class Device(NamedTuple):
    """The device as of now: parts of 1, bytes, watts, degrees Celsius; `pod` in the namespace `default`."""

    pod: str
    number: int
    busy: float
    memory_used: float
    memory_total: float
    power: float
    temperature: float


def device(number: int, running: int, most: int) -> Device:
    """The device under a server that runs `running` requests of at most `most`; `number` tells it from others."""
    batch = min(1.0, running / most) if most else 0.0
    busy = 0.9 + 0.1 * batch if running else 0.0
    return Device(
        f"emulated-{number}", number, busy, 72 * _GIB, 80 * _GIB, 80.0 + (320 + 300 * batch) * busy, 34.0 + 40.0 * busy
    )


def page(kind: str, one: Device, faults: Faults) -> bytes:
    """The exporter's page; `faults.accelerator` is one of its kinds that leave a page (ok, sick, ecc, blank)."""
    rows = _KINDS[kind](one, faults)
    lines: list[str] = []
    for name, kind_of_family, words, labels, value in rows:
        text = ",".join(f'{key}="{label}"' for key, label in labels.items())
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind_of_family}", f"{name}{{{text}}} {value}"]
    return ("\n".join(lines) + "\n").encode()


def _dcgm(one: Device, faults: Faults) -> list[Row]:
    labels = {
        "gpu": "0",
        "UUID": f"GPU-emulated-0000-0000-0000-{one.number:012d}",
        "pci_bus_id": "00000000:07:00.0",
        "device": "nvidia0",
        "modelName": "Emulated 80GB",
        "Hostname": "emulated-node",
        "DCGM_FI_DRIVER_VERSION": "580.95.05",
        "container": "server",
        "namespace": "default",
        "pod": one.pod,
    }
    blank = faults.accelerator == "blank"
    xid = faults.accelerator_xid if faults.accelerator == "sick" else 0
    ecc = 1 if faults.accelerator == "ecc" else 0
    mib = 2.0**20

    def row(name: str, type: str, help: str, value: str) -> Row:
        return f"DCGM_FI_{name}", type, help, labels, _DCGM_BLANK if blank else value

    return [
        row("DEV_GPU_TEMP", "gauge", "GPU temperature (in C).", f"{one.temperature:.0f}"),
        row("DEV_POWER_USAGE", "gauge", "Power draw (in W).", f"{one.power:.6f}"),
        row("DEV_GPU_UTIL", "gauge", "GPU utilization (in %).", f"{one.busy * 100:.0f}"),
        row("DEV_XID_ERRORS", "gauge", "Value of the last XID error encountered.", f"{xid}"),
        row(
            "DEV_FB_FREE",
            "gauge",
            "Framebuffer memory free (in MiB).",
            f"{(one.memory_total - one.memory_used) / mib:.0f}",
        ),
        row("DEV_FB_USED", "gauge", "Framebuffer memory used (in MiB).", f"{one.memory_used / mib:.0f}"),
        row("DEV_FB_RESERVED", "gauge", "Framebuffer memory reserved (in MiB).", "0"),
        row("DEV_ECC_DBE_VOL_TOTAL", "counter", "Total number of double-bit volatile ECC errors.", f"{ecc}"),
        row("DEV_ROW_REMAP_FAILURE", "gauge", "Whether remapping of rows has failed.", "0"),
        row("PROF_GR_ENGINE_ACTIVE", "gauge", "Ratio of time the graphics engine is active.", f"{one.busy:.6f}"),
    ]


def _tpu(one: Device, faults: Faults) -> list[Row]:
    of_chip = {
        "accelerator_id": f"{one.number:019d}-0",
        "make": "cloud-tpu",
        "model": "tpu7x",
        "tpu_topology": "2x2x1",
    }
    labels = {**of_chip, "container": "server", "namespace": "default", "pod": one.pod}
    cycle = "Percent of time when the TPU was actively processing"
    node: list[Row] = [("duty_cycle_node", "gauge", cycle, of_chip, f"{one.busy * 100:.0f}")]
    if faults.accelerator in {"sick", "blank"}:  # the plugin has no word for it: the chip is not there any more
        return node
    return [
        ("duty_cycle", "gauge", cycle, labels, f"{one.busy * 100:.0f}"),
        *node,
        ("memory_total", "gauge", "Total memory available on the TPU in bytes", labels, f"{one.memory_total:.0f}"),
        ("memory_used", "gauge", "Allocated TPU memory in bytes", labels, f"{one.memory_used:.0f}"),
    ]


def _amd(one: Device, faults: Faults) -> list[Row]:
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
        "pod": one.pod,
        "serial_number": f"{one.number:012d}",
    }
    blank = faults.accelerator == "blank"
    mib = 2.0**20

    def row(name: str, help: str, value: str) -> Row:
        return f"gpu_{name}", "gauge", help, labels, _AMD_BLANK if blank else value

    unwell = faults.accelerator in {"sick", "ecc"}
    health = ("gpu_health", "gauge", "Health of the GPU (0 = Unhealthy | 1 = Healthy)", labels, str(int(not unwell)))
    return [
        row("gfx_activity", "Graphics engine usage percentage (0 - 100)", f"{one.busy * 100:.0f}"),
        row("used_vram", "Total VRAM memory used in MB", f"{one.memory_used / mib:.0f}"),
        row("total_vram", "Total VRAM available in MB", f"{one.memory_total / mib:.0f}"),
        row("package_power", "Current socket power in Watts", f"{one.power:.0f}"),
        row("junction_temperature", "Hotspot (aka junction) temperature value in Celsius", f"{one.temperature:.0f}"),
        row("ecc_uncorrect_total", "Total Uncorrectable ECC error count", str(int(faults.accelerator == "ecc"))),
        health,
    ]


_KINDS: Final[Mapping[str, Callable[[Device, Faults], list[Row]]]] = {"amd": _amd, "dcgm": _dcgm, "tpu": _tpu}
KINDS: Final = tuple(_KINDS)
