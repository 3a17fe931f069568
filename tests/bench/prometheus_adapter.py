"""prometheus-adapter over Prometheus with a Kubernetes API server, to read the same list of pods from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.bench.programs import BenchProgram, free_ports
from tests.bench.scrapers import PrometheusScraper
from tests.cluster import programs
from tests.cluster.certificates import KeyPair
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import pod_spec
from tests.go_modules import GoModule

ADAPTER: Final = GoModule(
    "prometheus-adapter",
    Path(__file__).resolve().parent / "adapter_module",
    "sigs.k8s.io/prometheus-adapter",
    {"adapter": "sigs.k8s.io/prometheus-adapter/cmd/adapter"},
    3,
)
SERIES: Final = "vllm:num_requests_waiting"
METRIC: Final = "waiting_requests"
# Two rules would list the series twice; this is the rule of a Pods metric in the adapter's own documentation.
_RULES: Final = {
    "rules": [
        {
            "seriesQuery": f'{{__name__="{SERIES}",namespace!="",pod!=""}}',
            "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
            "name": {"as": METRIC},
            "metricsQuery": "sum(<<.Series>>{<<.LabelMatchers>>}) by (<<.GroupBy>>)",
        }
    ]
}


class PodsInCluster:
    """A control plane with pods that have no servers: the adapter lists pods at the API server for each read."""

    def __init__(self, folder: Path, namespace: str, names: Sequence[str], stack: ExitStack) -> None:
        self.plane = ControlPlane(folder, programs.build())
        stack.callback(self.plane.stop)
        api = self.plane.api
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
        for name in names:
            api.create(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {"name": name, "namespace": namespace},
                    "spec": {"nodeName": "node-1", **pod_spec((8000,))},
                }
            )

    @property
    def client(self) -> KeyPair:
        """The certificate of a client with all rights."""
        return self.plane.admin


class PrometheusAdapter:
    """A Prometheus that scrapes `endpoints` (address by pod name), and the adapter over it."""

    def __init__(
        self,
        folder: Path,
        cluster: PodsInCluster,
        namespace: str,
        endpoints: dict[str, str],
        interval: float,
        stack: ExitStack,
    ) -> None:
        targets = [
            {"targets": [address], "labels": {"namespace": namespace, "pod": pod}} for pod, address in endpoints.items()
        ]
        self.prometheus = PrometheusScraper(folder, targets, interval, stack)
        self.port = free_ports(1)[0]
        client = cluster.client
        user = {"client-certificate": str(client.certificate), "client-key": str(client.key)}
        kubeconfig = cluster.plane.kubeconfig("adapter", user)
        rules = folder / "rules.json"  # YAML has JSON
        rules.write_text(json.dumps(_RULES), encoding="utf-8")
        command: list[str | Path] = [
            ADAPTER.build()["adapter"],
            "--bind-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={folder / 'adapter-certificate'}",
            f"--prometheus-url={self.prometheus.url}",
            f"--config={rules}",
            "--metrics-relist-interval=15s",  # the default of 10 minutes would miss series that begin after its start
            "--metrics-max-age=1m",
            *(f"--{what}-kubeconfig={kubeconfig}" for what in ("lister", "authentication", "authorization")),
        ]
        self.child = BenchProgram(command, folder / "adapter.log")
        stack.callback(self.child.stop)
        self.path = f"/apis/custom.metrics.k8s.io/v1beta2/namespaces/{namespace}/pods/%2A/{METRIC}"

    def check(self) -> None:
        """Exit the bench if the adapter or Prometheus has ended."""
        for child in (self.child, self.prometheus.child):
            child.check_running()
