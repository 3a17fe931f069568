"""AMD's device metrics exporter (ROCm/device-metrics-exporter, port 5000).

Names and units: the exporter's `docs/configuration/metricslist.md` (1.5); its configuration may add a prefix to all
names. Labels are in upper case in the documentation and in lower case on the page. Activity is a percentage, memory is
in MB of 2^20 bytes. On a partitioned card activity and power are those of the card, reported by partition 0 only, so no
partition has them. `gpu_compute_partition_type` says how a card is partitioned: `spx` is a whole card. Some releases
report fields that a card lacks as the largest number of their type (device-metrics-exporter#662). `gpu_health` is the
exporter's verdict by its configured ECC limits.
"""

from __future__ import annotations

from typing import Final

from agent.accelerators import table
from agent.accelerators.table import AcceleratorExporter, FieldSource, PodLabels

_MIB: Final = 2.0**20

AMD: Final = AcceleratorExporter(
    name="amd",
    prefixes=("gpu_", "pcie_"),
    port=5000,
    sources={
        table.UTILIZATION: (FieldSource(("gpu_gfx_activity",), per=100, whole_card=True),),
        table.MEMORY_USED: (FieldSource(("gpu_used_vram",), _MIB),),
        table.MEMORY_TOTAL: (FieldSource(("gpu_total_vram",), _MIB),),
        table.POWER: (
            FieldSource(("gpu_package_power",), whole_card=True),
            FieldSource(("gpu_average_package_power",), whole_card=True),
            FieldSource(("gpu_power_usage",), whole_card=True),
        ),
        table.TEMPERATURE: (FieldSource(("gpu_junction_temperature",)), FieldSource(("gpu_edge_temperature",))),
        table.ECC: (FieldSource(("gpu_ecc_uncorrect_total",)),),
        table.HEALTHY: (FieldSource(("gpu_health",)),),
    },
    silent={table.REMAP_FAILED: "AMD cards retire bad pages, which is not on the page"},
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
    cut={"gpu_compute_partition_type": frozenset({"", "spx", "none", "na", "n/a"})},
    blanks=((2.0**31 - 1, 2.0**31 - 1), (2.0**32 - 1, 2.0**32 - 1), (2.0**63 - 1024, 2.0**64)),
    any_case=True,
)
