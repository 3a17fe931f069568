"""GKE's TPU device plugin (`tpu-device-plugin` in kube-system, port 2112).

Names: the plugin's page of v1.35.7-gke.0, and Google's "Run TPU workloads on GKE". A chip that a container uses has
series with `namespace`, `pod` and `container`. Beside them stand the same quantities of every chip of the machine as
`duty_cycle_node` and so on: the same numbers once more, which are not read. The duty cycle is a percentage, memory is
bytes; which quantities there are depends on the TPU's generation and on the runtime in the container.
"""

from __future__ import annotations

from typing import Final

from agent.accelerators import table
from agent.accelerators.table import Exporter, PodLabels, Source

_NOT_THERE: Final = "the plugin's page has nothing of the kind"

TPU: Final = Exporter(
    name="tpu",
    marks=("duty_cycle", "memory_total", "memory_used", "tensorcore_utilization", "memory_bandwidth_utilization"),
    port=2112,
    sources={
        table.UTILIZATION: (Source(("duty_cycle",), per=100),),
        table.MEMORY_USED: (Source(("memory_used",)),),
        table.MEMORY_TOTAL: (Source(("memory_total",)),),
    },
    silent=dict.fromkeys((table.POWER, table.TEMPERATURE, table.ECC, table.REMAP_FAILED, table.WELL), _NOT_THERE),
    id=("accelerator_id",),
    card=("accelerator_id",),
    model=("model",),
    node=("node",),
    pods=(
        PodLabels("exported_namespace", "exported_pod", "exported_container"),
        PodLabels("namespace", "pod", "container"),
    ),
)
