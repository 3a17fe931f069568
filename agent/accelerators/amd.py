"""AMD's device metrics exporter (ROCm/device-metrics-exporter, port 5000).

Names and units: the exporter's `docs/configuration/metricslist.md` (1.5); its configuration may put a prefix before
every name. Labels are in upper case in the documentation and in lower case on the page. Activity is a percentage and
memory MB of 2^20 bytes. On a card that is cut into partitions activity and power are the card's, told by partition 0
alone, and so nobody's. Fields that a card does not have are the largest number of their type on some releases
(device-metrics-exporter#662). `gpu_health` is the exporter's verdict by the ECC limits that it is configured with.
"""

from __future__ import annotations

from typing import Final

from agent.accelerators import table
from agent.accelerators.table import Exporter, PodLabels, Source

_MIB: Final = 2.0**20

AMD: Final = Exporter(
    name="amd",
    marks=("gpu_", "pcie_"),
    port=5000,
    sources={
        table.UTILIZATION: (Source(("gpu_gfx_activity",), per=100, whole=True),),
        table.MEMORY_USED: (Source(("gpu_used_vram",), _MIB),),
        table.MEMORY_TOTAL: (Source(("gpu_total_vram",), _MIB),),
        table.POWER: (
            Source(("gpu_package_power",), whole=True),
            Source(("gpu_average_package_power",), whole=True),
            Source(("gpu_power_usage",), whole=True),
        ),
        table.TEMPERATURE: (Source(("gpu_junction_temperature",)), Source(("gpu_edge_temperature",))),
        table.ECC: (Source(("gpu_ecc_uncorrect_total",)),),
        table.WELL: (Source(("gpu_health",)),),
    },
    silent={table.REMAP_FAILED: "AMD replaces bad pages without a word on the page"},
    id=("serial_number", "gpu_id", "gpu_partition_id"),
    card=("serial_number", "gpu_uuid", "gpu_id"),
    model=("card_series", "card_model"),
    node=("hostname",),
    pods=(
        PodLabels("exported_namespace", "exported_pod", "exported_container"),
        PodLabels("namespace", "pod", "container"),
    ),
    number="gpu_id",
    part="gpu_partition_id",
    whole_parts=frozenset({"", "0", "NA"}),
    blanks=((2.0**31 - 1, 2.0**31 - 1), (2.0**32 - 1, 2.0**32 - 1), (2.0**63 - 1024, 2.0**64)),
    any_case=True,
)
