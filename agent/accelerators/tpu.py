"""GKE's TPU device plugin (`tpu-device-plugin` in kube-system, port 2112).

Names: the plugin's page of v1.35.7-gke.0, and Google's "Run TPU workloads on GKE". A chip in use by a container has
series with `namespace`, `pod` and `container`. The same quantities of every chip of the node, `duty_cycle_node` and so
on, duplicate them and are not read. The duty cycle is a percentage, memory is in bytes; which quantities exist depends
on the TPU's generation and on the runtime in the container.
"""

from __future__ import annotations

from typing import Final

from agent.accelerators import table
from agent.accelerators.table import AcceleratorExporter, FieldSource, PodLabels

TPU: Final = AcceleratorExporter(
    name="tpu",
    prefixes=("duty_cycle", "memory_total", "memory_used", "tensorcore_utilization", "memory_bandwidth_utilization"),
    port=2112,
    sources={
        table.UTILIZATION: (FieldSource(("duty_cycle",), per=100),),
        table.MEMORY_USED: (FieldSource(("memory_used",)),),
        table.MEMORY_TOTAL: (FieldSource(("memory_total",)),),
    },
    id=("accelerator_id",),
    card=("accelerator_id",),
    model=("model",),
    node=("node",),
    pods=(
        PodLabels("exported_namespace", "exported_pod", "exported_container"),
        PodLabels("namespace", "pod", "container"),
    ),
)
