"""The registries of accelerator sources: name -> where its table or its client is. One file and one line each."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from agent.accelerators.table import AcceleratorExporter

# Exporters with a page that is scraped.
EXPORTERS: Final[Mapping[str, str]] = {
    "amd": "agent.accelerators.amd:AMD",
    "dcgm": "agent.accelerators.dcgm:DCGM",
    "tpu": "agent.accelerators.tpu:TPU",
}
# Sources that are read through a client library (`agent.accelerators.device_source`).
DEVICE_SOURCES: Final[Mapping[str, str]] = {
    "gke": "agent.accelerators.gke:Gke",
    "nvml": "agent.accelerators.nvml:Nvml",
}


def exporter(name: str) -> AcceleratorExporter:
    """The exporter of this name; ValueError, with the known names, where there is none."""
    where = EXPORTERS.get(name)
    if where is None:
        raise ValueError(f"there is no accelerator exporter {name!r}: it can be {', '.join(sorted(EXPORTERS))}")
    return cast("AcceleratorExporter", pkgutil.resolve_name(where))
