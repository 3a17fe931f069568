"""A real KEDA beside a control plane of tests/cluster: its operator and its metrics adapter, as processes.

Both listen on loopback, but for the adapter's port of its own metrics, for which it has no address to set.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from agent.envoy.process import kill_with_parent
from tests.cluster.api import Object, RefusedByApi
from tests.cluster.certificates import Authority
from tests.cluster.control_plane import ControlPlane
from tests.processes import Process
from tests.waiting import until

NAMESPACE: Final = "keda"
_SERVICE: Final = "keda-metrics-apiserver"
_HOST: Final = "127.0.0.1"
API: Final = "external.metrics.k8s.io"


class RunningKeda:
    """KEDA, once its operator reconciles and its API is available."""

    def __init__(
        self, plane: ControlPlane, programs: Mapping[str, Path], module: Path, folder: Path, ports: list[int]
    ) -> None:
        self._plane = plane
        self._folder = folder
        metrics_service, api, health, metrics = ports
        self._processes: dict[str, Process] = {}
        for crd in sorted((module / "config" / "crd" / "bases").glob("keda.sh_*.yaml")):
            plane.install_crd(yaml.safe_load(crd.read_text(encoding="utf-8")))
        self._create_objects(api)
        certificates = self._certificates()
        admin = plane.admin
        kubeconfig = plane.kubeconfig(
            "keda", {"client-certificate": str(admin.certificate), "client-key": str(admin.key)}
        )
        self._environ = {
            "KUBECONFIG": str(kubeconfig),
            "WATCH_NAMESPACE": "",
            "POD_NAMESPACE": NAMESPACE,
            "POD_NAME": "keda-operator-0",
            "OPERATOR_NAME": "keda-operator",
            "KEDA_CLUSTER_OBJECT_NAMESPACE": NAMESPACE,
        }
        self._start(
            programs["keda-operator"],
            {
                "cert-dir": certificates,
                "metrics-bind-address": "0",
                "health-probe-bind-address": f"{_HOST}:{health}",
                "metrics-service-bind-address": f"{_HOST}:{metrics_service}",
                "zap-log-level": "debug",
            },
        )
        self._start(
            programs["keda-adapter"],
            {
                "bind-address": _HOST,
                "secure-port": api,
                "port": metrics,
                "cert-dir": certificates,
                "tls-cert-file": certificates / "tls.crt",
                "tls-private-key-file": certificates / "tls.key",
                "metrics-service-address": f"{_HOST}:{metrics_service}",
                "lister-kubeconfig": kubeconfig,
                "authentication-kubeconfig": kubeconfig,
                "authorization-kubeconfig": kubeconfig,
            },
        )

    def available(self) -> None:
        """Wait until the API server reaches the adapter."""
        self._wait(self._is_available, f"{API} at the API server")

    def log(self, name: str) -> str:
        """What a program has printed so far."""
        return self._processes[name].output()

    def stop(self) -> None:
        for process in self._processes.values():
            process.stop()

    def _is_available(self) -> bool:
        found = self._plane.api.get(f"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.{API}")
        conditions = found.get("status", {}).get("conditions", [])
        return any(each["type"] == "Available" and each["status"] == "True" for each in conditions)

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        def done() -> bool:
            for name, process in self._processes.items():
                if not process.running():
                    pytest.fail(f"{name} ended: {process}", pytrace=False)
            with contextlib.suppress(RefusedByApi):
                return condition()
            return False

        until(done, 60.0, what)

    def _start(self, program: Path, flags: Mapping[str, object]) -> None:
        command = [str(program), *(f"--{flag}={value}" for flag, value in flags.items())]
        log = self._folder / f"{program.name}.log"
        self._processes[program.name] = Process(kill_with_parent(command), log, self._environ, self._folder)

    def _certificates(self) -> Path:
        """The folder with `ca.crt`, `tls.crt` and `tls.key`."""
        folder = self._folder / "certificates"
        folder.mkdir(mode=0o700)
        self._authority = Authority(folder, "ca")
        self._authority.peer("tls", [_HOST], [f"{_SERVICE}.{NAMESPACE}.svc"])
        service = self._plane.api
        bundle = _base64(self._authority.certificate.read_bytes())
        service.patch(f"/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.{API}", {"spec": {"caBundle": bundle}})
        return folder

    def _create_objects(self, port: int) -> None:
        api = self._plane.api
        api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
        service: Object = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": _SERVICE, "namespace": NAMESPACE},
            "spec": {"type": "ExternalName", "externalName": "localhost", "ports": [{"port": port}]},
        }
        api.create(service)
        api.create(
            {
                "apiVersion": "apiregistration.k8s.io/v1",
                "kind": "APIService",
                "metadata": {"name": f"v1beta1.{API}"},
                "spec": {
                    "group": API,
                    "version": "v1beta1",
                    "groupPriorityMinimum": 100,
                    "versionPriority": 100,
                    "service": {"name": _SERVICE, "namespace": NAMESPACE, "port": port},
                },
            }
        )
        role = f"{NAMESPACE}-external-metrics-reader"
        rule = {"apiGroups": [API], "resources": ["*"], "verbs": ["get", "list"]}
        meta = {"metadata": {"name": role}}
        api.create({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", **meta, "rules": [rule]})
        subject: dict[str, Any] = {
            "kind": "ServiceAccount",
            "name": "horizontal-pod-autoscaler",
            "namespace": "kube-system",
        }
        api.create(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "ClusterRoleBinding",
                **meta,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [subject],
            }
        )


def _base64(data: bytes) -> str:

    return base64.b64encode(data).decode()
