"""The sources of accelerator readings: name -> where its table, or its client, is. One file and one line each."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from agent.accelerators.table import Exporter

# These have a page that is scraped.
EXPORTERS: Final[Mapping[str, str]] = {
    "amd": "agent.accelerators.amd:AMD",
    "dcgm": "agent.accelerators.dcgm:DCGM",
    "tpu": "agent.accelerators.tpu:TPU",
}
# These are asked through a client library, in the shell.
PROBES: Final[Mapping[str, str]] = {
    "gke": "agent.accelerators.gke:Gke",
    "nvml": "agent.accelerators.nvml:Nvml",
}


def exporter(name: str) -> Exporter:
    """The exporter of this name; ValueError that names the known ones."""
    where = EXPORTERS.get(name)
    if where is None:
        raise ValueError(f"there is no accelerator exporter {name!r}: it can be {', '.join(sorted(EXPORTERS))}")
    return cast("Exporter", pkgutil.resolve_name(where))
