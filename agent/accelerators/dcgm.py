"""NVIDIA's dcgm-exporter, by the fields of DCGM.

Names and units: the exporter's METRICS.md and `etc/default-counters.csv` (2026-05), DCGM's field identifiers. The
engine's activity is a ratio and the utilization a percentage; frame buffer sizes are MiB. A card in MIG mode has a
series per instance (`GPU_I_ID`) and mostly one of its own: the utilization is measured for the card alone, and so is
the power. The exporter's host label was `Hostname` until 2026-05 (dcgm-exporter#655) and is `hostname` since; pods are
in `pod`, on pages that went through a Prometheus without honorLabels in `exported_pod`, and in `pod_name` before 2.0.

DCGM writes "not measured" as a number: from 0x7ffffff0, 0x7ffffffffffffff0 or 2^47 on, by the field's type (DCGM's
dcgm_structs.h: blank, not found, not supported, not permissioned). XID_ERRORS is the last code, or 0, as long as the
driver runs; some releases have the series only once there was an error.
"""

from __future__ import annotations

from typing import Final

from agent.accelerators import table
from agent.accelerators.table import Exporter, PodLabels, Source

_MIB: Final = 2.0**20
_USED: Final = "DCGM_FI_DEV_FB_USED"
_FREE: Final = "DCGM_FI_DEV_FB_FREE"

DCGM: Final = Exporter(
    name="dcgm",
    marks=("DCGM_",),
    port=9400,
    sources={
        table.UTILIZATION: (
            Source(("DCGM_FI_PROF_GR_ENGINE_ACTIVE",)),
            Source(("DCGM_FI_DEV_GPU_UTIL",), per=100, whole=True),
        ),
        table.MEMORY_USED: (Source((_USED,), _MIB),),
        table.MEMORY_TOTAL: (
            Source(("DCGM_FI_DEV_FB_TOTAL",), _MIB),
            Source((_USED, _FREE, "DCGM_FI_DEV_FB_RESERVED"), _MIB),
            Source((_USED, _FREE), _MIB),  # releases without RESERVED count it in USED
        ),
        table.POWER: (Source(("DCGM_FI_DEV_POWER_USAGE",), whole=True),),
        table.TEMPERATURE: (Source(("DCGM_FI_DEV_GPU_TEMP",)),),
        table.ECC: (Source(("DCGM_FI_DEV_ECC_DBE_VOL_TOTAL",)),),
        table.REMAP_FAILED: (Source(("DCGM_FI_DEV_ROW_REMAP_FAILURE",)),),
    },
    silent={
        table.WELL: "DCGM_EXP_GPU_HEALTH_STATUS mixes warnings with failures; XID, ECC, remapped rows say what failed"
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
    xids=("DCGM_FI_DEV_XID_ERRORS",),
    xid_counts={"DCGM_EXP_XID_ERRORS_COUNT": "xid"},
    blanks=((0x7FFFFFF0, 0x7FFFFFFF), (2.0**47, 2.0**47 + 15), (2.0**63 - 1024, 2.0**64)),
)
