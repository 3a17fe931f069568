"""The control plane of the tests is a real one: its version, RBAC, the audit log, aggregation, controllers, its end."""

from __future__ import annotations

import asyncio
import base64
import json
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import programs
from tests.cluster.access import api_of, create_service_account, grant, kubeconfig_of, mount_token
from tests.cluster.api import Api, RefusedByApi
from tests.cluster.audit_log import AuditRecord
from tests.cluster.certificates import Authority
from tests.cluster.control_plane import ControlPlane
from tests.fakes.model_server import ModelServer, answer
from tests.processes import ROOT, Process, Processes
from tests.waiting import found, until

READ_PODS = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def test_the_api_server_has_the_version_that_the_module_names(control_plane: ControlPlane) -> None:
    version = control_plane.api.get("/version")
    assert version["gitVersion"].startswith(f"v{programs.wanted('kube-apiserver')}.")
    assert f"{version['major']}.{version['minor']}" == programs.wanted("kube-apiserver")


def test_it_listens_on_loopback_only(control_plane: ControlPlane) -> None:
    listening = {
        local
        for table in ("tcp", "tcp6")
        for _, local, _, state, *rest in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines()[1:])
        if state == "0A" and rest[5] in _sockets(control_plane)
    }
    assert len(listening) == 3  # etcd has two ports; the controllers have none
    assert {address.split(":")[0] for address in listening} == {"0100007F"}  # 127.0.0.1


def _sockets(control_plane: ControlPlane) -> set[str]:
    """The inodes of the sockets of its processes."""
    links = [str(link.readlink()) for pid in control_plane.pids.values() for link in Path(f"/proc/{pid}/fd").iterdir()]
    return {link.removeprefix("socket:[").removesuffix("]") for link in links if link.startswith("socket:[")}


def test_an_account_without_a_role_is_refused_until_it_gets_one(control_plane: ControlPlane, namespace: str) -> None:
    account = create_service_account(control_plane.api, namespace, "reader")
    api = api_of(control_plane, account)
    path = f"/api/v1/namespaces/{namespace}/pods"
    with pytest.raises(RefusedByApi, match=f'User "{account.user}" cannot list resource "pods"') as refused:
        api.get(path)
    assert (refused.value.status, refused.value.reason) == (403, "Forbidden")

    grant(control_plane.api, account, [READ_PODS], namespace)
    until(lambda: _allowed(api, path), what="the role of the account")
    with pytest.raises(RefusedByApi, match="403 Forbidden"):
        api.get("/api/v1/namespaces/default/pods")
    with pytest.raises(RefusedByApi, match="403 Forbidden"):
        api.delete(f"{path}/any")
    api.close()


def _allowed(api: Api, path: str) -> bool:
    """Whether a GET is allowed: RBAC sees a new role a moment after its creation."""
    try:
        api.get(path)
    except RefusedByApi as refused:
        if refused.status != 403:
            raise
        return False
    return True


def test_a_wrong_token_and_no_token_are_refused(control_plane: ControlPlane) -> None:
    for token, status in {"wrong": 401, "": 403}.items():
        api = Api(control_plane.url, control_plane.client_ca, token=token)
        with pytest.raises(RefusedByApi) as refused:
            api.get("/api/v1/pods")
        assert refused.value.status == status
        api.close()


def test_the_audit_log_has_the_requests_of_an_account_with_their_decisions(
    control_plane: ControlPlane, namespace: str
) -> None:
    account = create_service_account(control_plane.api, namespace, "audited")
    grant(control_plane.api, account, [READ_PODS], namespace)
    api = api_of(control_plane, account)
    path = f"/api/v1/namespaces/{namespace}/pods"
    until(lambda: _allowed(api, path), what="the role of the account")
    since = control_plane.audit.mark()
    api.get(path)
    with pytest.raises(RefusedByApi, match="404 NotFound"):
        api.get(f"{path}/nobody")
    with pytest.raises(RefusedByApi, match="403 Forbidden"):
        api.patch(f"{path}/nobody/status", {})
    with pytest.raises(RefusedByApi, match="403 Forbidden"):
        api.get("/metrics")
    api.close()

    def read() -> list[AuditRecord]:
        found = control_plane.audit.records(account.user, since)
        return found if len(found) == 4 else []

    rows = [
        (item.verb, item.resource, item.namespace, item.name, item.path, item.allowed, item.status)
        for item in until(read, what="four records")
    ]
    assert rows == [
        ("list", "pods", namespace, "", path, True, 200),
        ("get", "pods", namespace, "nobody", f"{path}/nobody", True, 404),
        ("patch", "pods/status", namespace, "nobody", f"{path}/nobody/status", False, 403),
        ("get", "", "", "", "/metrics", False, 403),
    ]
    assert f"{namespace}-audited" in read()[0].reason  # the binding that allowed it
    assert [item.verb for item in control_plane.audit.denied(account.user, since)] == ["patch", "get"]


def test_an_open_watch_is_one_record(control_plane: ControlPlane, namespace: str) -> None:
    account = create_service_account(control_plane.api, namespace, "watcher")
    grant(control_plane.api, account, [{**READ_PODS, "verbs": ["get", "list", "watch"]}], namespace)
    api = api_of(control_plane, account)
    path = f"/api/v1/namespaces/{namespace}/pods"
    until(lambda: _allowed(api, path), what="the role of the account")
    since = control_plane.audit.mark()
    api.request("GET", path, query={"watch": "1", "timeoutSeconds": 1})
    api.close()
    found = until(lambda: control_plane.audit.records(account.user, since), what="the record of the watch")
    assert [(item.verb, item.resource, item.allowed) for item in found] == [("watch", "pods", True)]


def test_an_api_server_of_an_extension_finds_whom_to_trust(control_plane: ControlPlane) -> None:
    data = control_plane.api.get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")["data"]
    assert data["client-ca-file"] == control_plane.client_ca.read_text()
    assert data["requestheader-client-ca-file"] == control_plane.front_proxy_ca.read_text()
    assert json.loads(data["requestheader-allowed-names"]) == ["front-proxy-client"]
    assert json.loads(data["requestheader-username-headers"]) == ["X-Remote-User"]


def api_service(namespace: str, name: str, port: int, **spec: Any) -> dict[str, Any]:
    """An APIService whose group is served by this Service."""
    group = f"{name}.example.com"
    service = {"namespace": namespace, "name": name, "port": port}
    return {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"v1.{group}"},
        "spec": {
            "group": group,
            "version": "v1",
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "service": service,
            **spec,
        },
    }


def availability(api: Api, path: str) -> tuple[str, str] | None:
    """(status, reason) of the condition Available of an APIService; None until it has one."""
    conditions = api.get(path).get("status", {}).get("conditions", ())
    return next(((item["status"], item["reason"]) for item in conditions if item["type"] == "Available"), None)


def test_a_group_without_a_service_is_not_available(control_plane: ControlPlane, namespace: str) -> None:
    api = control_plane.api
    manifest = api_service(namespace, "nobody", 443, insecureSkipTLSVerify=True)
    api.create(manifest)
    path = api.path_of(manifest)
    assert until(lambda: availability(api, path), what="its condition") == ("False", "ServiceNotFound")
    with pytest.raises(RefusedByApi, match="503"):
        api.get("/apis/nobody.example.com/v1")
    api.delete(path)


async def test_an_aggregated_api_is_requested_by_the_front_proxy_in_the_name_of_the_user(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    """A server on loopback is reached through a Service of type ExternalName."""
    authority = Authority(tmp_path, "extension-ca")
    own = authority.server("extension", ["127.0.0.1"], [f"extension.{namespace}.svc"])
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(control_plane.front_proxy_ca))
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(own.certificate, own.key)
    clients = set()

    async def serve(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        clients.add(writer.get_extra_info("peercert")["subject"])
        resources = b'{"kind":"APIResourceList","apiVersion":"v1","resources":[]}'
        writer.write(answer(resources, headers="Content-Type: application/json\r\n"))

    server = ModelServer(serve)
    await server.start(tls=tls)
    api = control_plane.api
    bundle = base64.b64encode(authority.certificate.read_bytes()).decode()
    manifest = api_service(namespace, "extension", server.port, caBundle=bundle)
    metadata = {"name": "extension", "namespace": namespace}
    service = {"type": "ExternalName", "externalName": "localhost"}
    await asyncio.to_thread(api.create, {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service})
    await asyncio.to_thread(api.create, manifest)
    path = await asyncio.to_thread(api.path_of, manifest)

    async def read() -> tuple[str, str] | None:
        return await asyncio.to_thread(availability, api, path)

    assert await found(read, lambda value: value == ("True", "Passed"), what="the availability of the group")
    await asyncio.to_thread(api.get, "/apis/extension.example.com/v1/anything")
    users = {request.path: request.headers["X-Remote-User"] for request in server.requests}
    assert users["/apis/extension.example.com/v1/anything"] == "admin"
    assert clients == {((("commonName", "front-proxy-client"),),)}
    await asyncio.to_thread(api.delete, path)
    await server.stop()


def test_the_autoscaler_reads_an_external_metric_and_reports_that_nobody_serves_it(
    control_plane: ControlPlane, namespace: str
) -> None:
    api = control_plane.api
    labels = {"app": "scaled"}
    container = {"name": "server", "image": "none"}
    api.create(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "scaled", "namespace": namespace},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
            },
        }
    )
    metric = {
        "type": "External",
        "external": {"metric": {"name": "queue"}, "target": {"type": "AverageValue", "averageValue": "1"}},
    }
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "scaled", "namespace": namespace},
        "spec": {
            "minReplicas": 1,
            "maxReplicas": 3,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "scaled"},
            "metrics": [metric],
        },
    }
    api.create(autoscaler)

    def inactive() -> bool:
        status = api.get(api.path_of(autoscaler)).get("status", {})
        reasons = {item["type"]: item["reason"] for item in status.get("conditions", ())}
        return reasons.get("ScalingActive") == "FailedGetExternalMetric"

    until(inactive, what="the condition of the autoscaler")
    user = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
    assert until(
        lambda: [item for item in control_plane.audit.records(user) if "external.metrics.k8s.io" in item.path],
        what="its request for the metric",
    )


def test_kubectl_reads_as_the_account_of_a_kubeconfig(control_plane: ControlPlane, namespace: str) -> None:
    account = create_service_account(control_plane.api, namespace, "human")
    config = kubeconfig_of(control_plane, account)
    kubectl = [str(programs.find()["kubectl"]), "--kubeconfig", str(config)]
    ran = subprocess.run([*kubectl, "auth", "whoami", "--output", "json"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["status"]["userInfo"]["username"] == account.user
    assert config.stat().st_mode & 0o077 == 0  # it has a token


def test_a_mounted_token_is_that_of_a_pod_and_is_another_one_after_a_rotation(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    account = create_service_account(control_plane.api, namespace, "mounted")
    mounted = mount_token(control_plane, account, tmp_path / "serviceaccount")
    first = (mounted.folder / "token").read_text()
    host, port = (mounted.variables[f"KUBERNETES_SERVICE_{name}"] for name in ("HOST", "PORT"))
    api = Api(f"https://{host}:{port}", mounted.folder / "ca.crt", token=first)
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    api.close()
    assert answer["status"]["userInfo"]["username"] == account.user
    assert (mounted.folder / "namespace").read_text() == namespace
    mount_token(control_plane, account, mounted.folder)
    assert (mounted.folder / "token").read_text() != first


RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for what it starts in the background
from pathlib import Path
from tests.cluster import programs
from tests.cluster.control_plane import ControlPlane
try:
    running = ControlPlane(Path(sys.argv[1]), programs.find())
    print("port", running.port, flush=True)
    signal.pause()
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def second(control_plane: ControlPlane, processes: Processes, tmp_path: Path) -> Process:
    """Another run, which starts a control plane beside the shared one."""
    return processes.start([sys.executable, "-c", RUN, tmp_path], env={"PYTHONPATH": str(ROOT)})


def children(process: Process) -> list[int]:
    """The ids of the processes that it has started so far."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in pids]


def test_a_run_that_is_killed_leaves_no_process(control_plane: ControlPlane, second: Process) -> None:
    port = int(second.wait_for(r"port (\d+)", within=90)[1])
    assert port != control_plane.port
    pids = children(second)
    assert len(pids) == 3
    assert all(alive(pid) for pid in pids)
    second.signal(signal.SIGKILL)
    second.wait()
    until(lambda: not any(alive(pid) for pid in pids), what="the end of its processes")
    until(lambda: not listens(port), what="the end of its port")  # a killed process closes its sockets a little later
    assert listens(control_plane.port)


def test_a_start_that_is_interrupted_leaves_no_process_and_no_data(second: Process, tmp_path: Path) -> None:
    until((tmp_path / "etcd").exists, what="the data of etcd")
    until((tmp_path / "kube-apiserver.log").exists, what="the start of the API server")
    pids = children(second)
    assert pids
    second.signal(signal.SIGINT)
    assert second.wait_for("interrupted")
    second.wait()
    assert not any(alive(pid) for pid in pids)
    assert not (tmp_path / "etcd").exists()


def test_an_api_server_that_is_killed_comes_back_with_what_it_had(control_plane: ControlPlane, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    before = control_plane.api.get(path)["metadata"]["uid"]
    control_plane.stop_api_server(abruptly=True)
    assert not listens(control_plane.port)
    control_plane.start_api_server()
    assert control_plane.api.get(path)["metadata"]["uid"] == before
