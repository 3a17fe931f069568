"""NVIDIA's dcgm-exporter, by the fields of DCGM.

Names and units: the exporter's METRICS.md and `etc/default-counters.csv` (2026-05), and DCGM's field identifiers. The
engine activity is a ratio, the utilization a percentage; frame buffer sizes are in MiB. A card in MIG mode has one
series per instance (`GPU_I_ID`), and usually one for the card: utilization and power are measured for the card only.
With time slicing and MPS the exporter repeats the series of a card, or of a MIG instance, for each of its replicas,
which `vgpu` numbers (`KUBERNETES_VIRTUAL_GPUS`); every replica has the numbers of the whole. The label with the host is
`Hostname` before 2026-05 (dcgm-exporter#655) and `hostname` since. Pods are in `pod`; in `exported_pod` on pages from a
Prometheus without honorLabels; in `pod_name` before 2.0.

DCGM reports "not measured" as a number: from 0x7ffffff0, 0x7ffffffffffffff0 or 2^47 on, by the type of the field
(DCGM's dcgm_structs.h: blank, not found, not supported, not permissioned). XID_ERRORS is the last code, or 0, since the
driver was loaded; some releases only have the series after an error.
"""

from __future__ import annotations

from typing import Final

from agent.accelerators import table
from agent.accelerators.table import AcceleratorExporter, FieldSource, PodLabels

_MIB: Final = 2.0**20
_USED: Final = "DCGM_FI_DEV_FB_USED"
_FREE: Final = "DCGM_FI_DEV_FB_FREE"

DCGM: Final = AcceleratorExporter(
    name="dcgm",
    prefixes=("DCGM_",),
    port=9400,
    sources={
        table.UTILIZATION: (
            FieldSource(("DCGM_FI_PROF_GR_ENGINE_ACTIVE",)),
            FieldSource(("DCGM_FI_DEV_GPU_UTIL",), per=100, whole_card=True),
        ),
        table.MEMORY_USED: (FieldSource((_USED,), _MIB),),
        table.MEMORY_TOTAL: (
            FieldSource(("DCGM_FI_DEV_FB_TOTAL",), _MIB),
            FieldSource((_USED, _FREE, "DCGM_FI_DEV_FB_RESERVED"), _MIB),
            FieldSource((_USED, _FREE), _MIB),  # releases without RESERVED include it in USED
        ),
        table.POWER: (FieldSource(("DCGM_FI_DEV_POWER_USAGE",), whole_card=True),),
        table.TEMPERATURE: (FieldSource(("DCGM_FI_DEV_GPU_TEMP",)),),
        table.ECC: (FieldSource(("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",)),),
        table.REMAP_FAILED: (FieldSource(("DCGM_FI_DEV_ROW_REMAP_FAILURE",)),),
    },
    silent={
        table.HEALTHY: "DCGM_EXP_GPU_HEALTH_STATUS also has warnings; XID, ECC and row remap errors are used instead"
    },
    id=("UUID", "GPU_I_ID", "vgpu"),
    card=("UUID",),
    model=("modelName",),
    node=("Hostname", "hostname"),
    pods=(
        PodLabels("exported_namespace", "exported_pod", "exported_container"),
        PodLabels("namespace", "pod", "container"),
        PodLabels("pod_namespace", "pod_name", "container_name"),
    ),
    number="gpu",
    part="GPU_I_ID",
    cut={"GPU_I_PROFILE": frozenset({""})},
    shares=("vgpu",),
    xids=("DCGM_FI_DEV_XID_ERRORS",),
    xid_counts={"DCGM_EXP_XID_ERRORS_COUNT": "xid"},
    blanks=((0x7FFFFFF0, 0x7FFFFFFF), (2.0**47, 2.0**47 + 15), (2.0**63 - 1024, 2.0**64)),
)
