"""A Kubernetes control plane as three processes: etcd, kube-apiserver and kube-controller-manager.

RBAC, the audit log and the aggregation layer are on. There is no scheduler and no kubelet: `pods` writes the status of
pods. All listen on loopback. The kernel kills the processes when the thread that started them ends, so a test run that
is killed leaves none behind.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from agent.envoy.process import kill_with_parent
from tests.cluster.api import Api, RefusedByApi
from tests.cluster.audit_log import POLICY, AuditLog
from tests.cluster.certificates import Authority, KeyPair, signing_key
from tests.processes import Process
from tests.waiting import until

_HOST: Final = "127.0.0.1"
_SERVICES: Final = "10.0.0.0/24"
_SERVICE_OF_THE_API: Final = "10.0.0.1"
# Those that the tests need; a controller of nodes would remove pods from nodes that do not exist.
_CONTROLLERS: Final = """horizontal-pod-autoscaler-controller deployment-controller replicaset-controller
    serviceaccount-controller serviceaccount-token-controller garbage-collector-controller namespace-controller
    endpointslice-controller root-ca-certificate-publisher-controller""".split()
_FAILURES: Final = (requests.RequestException, RefusedByApi)


class ControlPlaneFailed(Exception):
    """A process of the control plane ended early or did not get ready; the message has the end of its log."""


class ReservedPort:
    """A free TCP port of 127.0.0.1 that no other program gets while this is open.

    The socket is bound and does not listen. A program that sets SO_REUSEPORT may bind the port beside it.
    """

    def __init__(self) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._socket.bind((_HOST, 0))
        self.number: int = self._socket.getsockname()[1]

    def close(self) -> None:
        self._socket.close()


class ControlPlane:
    """A running control plane: `url` of the API server, `api` as administrator, `audit`, and its certificates.

    `client_ca` has signed the API server and its clients; `front_proxy_ca` has signed `front_proxy`, which the API
    server presents to an aggregated API. Start it from the main thread. Raises ControlPlaneFailed.
    """

    def __init__(self, folder: Path, programs: Mapping[str, Path]) -> None:
        self.folder = folder
        self._programs = programs
        self._processes: dict[str, Process] = {}
        self._ports = [ReservedPort() for _ in range(3)]
        self._etcd_port, self._etcd_peer_port, port = (reserved.number for reserved in self._ports)
        self.port = port
        self.url = f"https://{_HOST}:{port}"
        self._write_certificates()
        self._audit_path = folder / "audit.log"
        self.audit = AuditLog(self._audit_path)
        self.api = Api(self.url, self.client_ca, certificate=self.admin)
        try:
            self._start_etcd()
            self.start_api_server()
            self._start_controller_manager()  # it gives up if the API server is not ready within ten seconds
            self._wait_for_controllers()
        except BaseException:
            self.stop()
            raise

    @property
    def pids(self) -> dict[str, int]:
        """The process id of each running program."""
        return {name: process.pid for name, process in self._processes.items() if process.running()}

    def log(self, name: str) -> str:
        """What a program has printed so far."""
        return self._processes[name].output()

    def stop(self) -> None:
        """Stop all processes, release the ports, and remove the data of etcd; the logs stay in `folder`."""
        for name in ("kube-controller-manager", "kube-apiserver", "etcd"):  # each before what it needs
            if process := self._processes.pop(name, None):
                process.stop()
        for reserved in self._ports:
            reserved.close()
        self.api.close()
        shutil.rmtree(self.folder / "etcd", ignore_errors=True)

    def start_api_server(self) -> None:
        """Start the API server, and return when it is ready: again, after `stop_api_server`."""
        front_proxy = self.front_proxy
        self._start(
            "kube-apiserver",
            {
                "etcd-servers": f"http://{_HOST}:{self._etcd_port}",
                "bind-address": _HOST,
                "secure-port": self.port,
                "permit-port-sharing": "true",
                "advertise-address": _HOST,
                "endpoint-reconciler-type": "none",
                "shutdown-watch-termination-grace-period": "1s",  # else it waits a minute for open watches to end
                "tls-cert-file": self._server.certificate,
                "tls-private-key-file": self._server.key,
                "client-ca-file": self.client_ca,
                "service-account-key-file": self.tokens.certificate,
                "service-account-signing-key-file": self.tokens.key,
                "service-account-issuer": "https://kubernetes.default.svc",
                "authorization-mode": "RBAC",
                "service-cluster-ip-range": _SERVICES,
                "requestheader-client-ca-file": self.front_proxy_ca,
                "requestheader-allowed-names": "front-proxy-client",
                "requestheader-username-headers": "X-Remote-User",
                "requestheader-group-headers": "X-Remote-Group",
                "requestheader-extra-headers-prefix": "X-Remote-Extra-",
                "proxy-client-cert-file": front_proxy.certificate,
                "proxy-client-key-file": front_proxy.key,
                "audit-policy-file": self._written("audit-policy.yaml", POLICY),
                "audit-log-path": self._audit_path,
                # It refuses pods of a namespace whose ServiceAccount is not there yet, and mounts tokens.
                "disable-admission-plugins": "ServiceAccount",
            },
        )
        self._wait("kube-apiserver", "/readyz")

    def stop_api_server(self, *, abruptly: bool = False) -> None:
        """End the API server only, by SIGKILL where abruptly. Its port stays reserved and refuses connections."""
        process = self._processes.pop("kube-apiserver")
        if abruptly:
            process.kill()
        else:
            process.stop()

    def install_crd(self, manifest: Mapping[str, Any]) -> str:
        """Apply a CustomResourceDefinition and return its name when its objects can be created."""
        name: str = manifest["metadata"]["name"]
        self.api.apply(manifest)
        path = self.api.path_of(manifest)
        plural, _, group = name.partition(".")
        version = manifest["spec"]["versions"][0]["name"]

        def served() -> bool:
            conditions = self.api.get(path).get("status", {}).get("conditions") or ()
            established = {"Established", "NamesAccepted"} <= {c["type"] for c in conditions if c["status"] == "True"}
            with contextlib.suppress(RefusedByApi):  # 404 until the discovery document has it
                return established and plural in {
                    row["name"] for row in self.api.get(f"/apis/{group}/{version}")["resources"]
                }
            return False

        until(served, what=f"{name} at the API server")
        return name

    def kubeconfig(self, name: str, user: Mapping[str, Any]) -> Path:
        """A kubeconfig of this API server; `user` has the credentials in the words of that format."""
        cluster = {"server": self.url, "certificate-authority": str(self.client_ca)}
        return self._written(
            f"{name}.kubeconfig",
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "tests", "cluster": cluster}],
                "users": [{"name": name, "user": dict(user)}],
                "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": name}}],
                "current-context": "tests",
            },
        )

    def _write_certificates(self) -> None:
        folder = self.folder / "pki"
        folder.mkdir(mode=0o700)
        cluster = Authority(folder, "ca")
        front_proxy = Authority(folder, "front-proxy-ca")
        self.client_ca = cluster.certificate
        self.front_proxy_ca = front_proxy.certificate
        self.front_proxy = front_proxy.client("front-proxy-client", "front-proxy-client")
        self.admin: KeyPair = cluster.client("admin", "admin", ["system:masters"])
        self._manager = cluster.client("controller-manager", "system:kube-controller-manager")
        names = ("localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc")
        self._server = cluster.server("apiserver", [_HOST, _SERVICE_OF_THE_API], names)
        self.tokens = signing_key(folder, "service-accounts")

    def _start_etcd(self) -> None:
        client, peer = f"http://{_HOST}:{self._etcd_port}", f"http://{_HOST}:{self._etcd_peer_port}"
        self._start(
            "etcd",
            {
                "name": "tests",
                "data-dir": self.folder / "etcd",
                "listen-client-urls": client,
                "advertise-client-urls": client,
                "listen-peer-urls": peer,
                "initial-advertise-peer-urls": peer,
                "initial-cluster": f"tests={peer}",
                "socket-reuse-port": "true",
                "unsafe-no-fsync": "true",  # the data ends with the tests
                "log-level": "warn",
            },
        )

    def _start_controller_manager(self) -> None:
        keys = self._manager
        user = {"client-certificate": str(keys.certificate), "client-key": str(keys.key)}
        self._start(
            "kube-controller-manager",
            {
                "kubeconfig": self.kubeconfig("controller-manager", user),
                "secure-port": 0,  # it serves nothing
                "leader-elect": "false",
                "controllers": ",".join(_CONTROLLERS),
                "use-service-account-credentials": "true",
                "service-account-private-key-file": self.tokens.key,
                "root-ca-file": self.client_ca,
                "horizontal-pod-autoscaler-sync-period": "1s",
                "horizontal-pod-autoscaler-downscale-stabilization": "5s",
                "horizontal-pod-autoscaler-initial-readiness-delay": "0s",
                "horizontal-pod-autoscaler-cpu-initialization-period": "0s",
            },
        )

    def _start(self, name: str, flags: Mapping[str, object]) -> None:
        command = [str(self._programs[name]), *(f"--{flag}={value}" for flag, value in flags.items())]
        self._processes[name] = Process(kill_with_parent(command), self.folder / f"{name}.log", {}, self.folder)

    def _wait_for_controllers(self) -> None:
        """The controllers are in operation when the default namespace has what two of them make."""
        self._wait("kube-controller-manager", "/api/v1/namespaces/default/serviceaccounts/default")
        self._wait("kube-controller-manager", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt")

    def _wait(self, name: str, path: str, within: float = 120.0) -> None:
        def done() -> bool:
            for started, process in self._processes.items():
                if not process.running():
                    raise ControlPlaneFailed(f"{started} ended: {process}")
            with contextlib.suppress(*_FAILURES):
                self.api.get(path)
                return True
            return False

        try:
            until(done, within, f"{path} of the API server")
        except pytest.fail.Exception as late:
            raise ControlPlaneFailed(f"{late}\n{self._processes[name]}") from late

    def _written(self, name: str, document: Mapping[str, Any]) -> Path:
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(json.dumps(document), encoding="utf-8")  # JSON is YAML
        return path
