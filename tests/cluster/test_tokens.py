"""Tokens of ServiceAccounts that are replaced while the agent runs, as a kubelet does, and that end.

A token that is bound to a Secret is invalid once the Secret is deleted; the API server remembers for ten seconds what
it has accepted.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from agent.clock import SystemClock
from agent.kube import informer
from agent.kube.cache import ObjectCache, decoder_of
from agent.kube.client import KubeClient
from agent.kube.cluster import PODS_PATH, Cluster
from agent.kube.errors import ApiFailed
from agent.kube.objects import Pod, PodView, pod_view
from tests.cluster.access import ServiceAccount, create_service_account, grant
from tests.cluster.api import Api, RefusedByApi
from tests.cluster.control_plane import ControlPlane
from tests.cluster.pods import Pods
from tests.waiting import eventually, found

RULES = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
_POD = decoder_of(Pod)


class RotatedToken:
    """The token file of a ServiceAccount; each token is bound to a Secret of its own."""

    def __init__(self, control_plane: ControlPlane, account: ServiceAccount, folder: Path) -> None:
        self.file = folder / "token"
        self._control_plane = control_plane
        self._account = account
        self._count = 0

    @property
    def _secrets(self) -> str:
        return f"/api/v1/namespaces/{self._account.namespace}/secrets"

    def replace(self) -> str:
        """Write another token into the file; returns it."""
        self._count += 1
        token = self.request(f"token-{self._count}")
        part = self.file.with_suffix(".part")
        part.write_text(token)
        part.replace(self.file)
        return token

    def request(self, secret: str) -> str:
        """A token that is bound to a new Secret."""
        api, account = self._control_plane.api, self._account
        metadata = {"name": secret, "namespace": account.namespace}
        uid = api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata})["metadata"]["uid"]
        bound = {"apiVersion": "v1", "kind": "Secret", "name": secret, "uid": uid}
        spec: dict[str, Any] = {"expirationSeconds": 600, "audiences": [], "boundObjectRef": bound}
        path = f"/api/v1/namespaces/{account.namespace}/serviceaccounts/{account.name}/token"
        requested = api.post(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
        token: str = requested["status"]["token"]
        return token

    def end(self, number: int) -> None:
        """Make a token invalid."""
        self._control_plane.api.delete(f"{self._secrets}/token-{number}")

    def kubeconfig(self) -> str:
        """A kubeconfig that names the file."""
        return str(self._control_plane.kubeconfig(self._account.name, {"tokenFile": str(self.file)}))


@pytest.fixture
def token(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> RotatedToken:
    account = create_service_account(control_plane.api, namespace, f"rotated-{namespace}")
    grant(control_plane.api, account, RULES, namespace)
    return RotatedToken(control_plane, account, tmp_path)


@pytest.mark.parametrize("where", ["kubeconfig", "pod"])
def test_a_token_that_has_ended_is_read_again_at_once(
    control_plane: ControlPlane, namespace: str, token: RotatedToken, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    token.replace()
    token.end(1)  # before it is used, so that the API server remembers nothing
    if where == "kubeconfig":
        client = KubeClient(token.kubeconfig())
    else:
        module = "kubernetes.config.incluster_config"
        monkeypatch.setattr(f"{module}.SERVICE_TOKEN_FILENAME", str(token.file))
        monkeypatch.setattr(f"{module}.SERVICE_CERT_FILENAME", str(control_plane.client_ca))
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(control_plane.port))
        client = KubeClient()
    path = PODS_PATH.format(namespace=namespace)
    mark = control_plane.audit.mark()
    with pytest.raises(ApiFailed, match=r"401: Unauthorized: the API server does not accept the token (that|of)"):
        client.get(path, {"limit": "1"})
    token.replace()
    assert b'"PodList"' in client.get(path, {"limit": "1"})
    assert b'"PodList"' in client.get(path, {"limit": "1"})
    client.close()
    refused = [record for record in control_plane.audit.records(since=mark) if record.status == 401]
    assert len(refused) <= 2  # one for each get with the token that has ended


class WatchedPods:
    """The pods of the namespace, watched with the token by watches that the API server ends every second."""

    def __init__(self, cluster: Cluster, client: KubeClient, namespace: str) -> None:
        self.cache: ObjectCache[PodView] = ObjectCache(lambda raw: pod_view(_POD(raw)))
        self.failures: list[str] = []
        path = PODS_PATH.format(namespace=namespace)
        self.informer = cluster.informer(client, self.cache, path, {}, self._changed)
        self.task = asyncio.get_running_loop().create_task(self.informer.run())

    def _changed(self) -> None:
        if self.informer.status.failing:
            self.failures.append(self.informer.status.failing)


@pytest.fixture
async def watched(namespace: str, token: RotatedToken, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[WatchedPods]:
    monkeypatch.setattr(informer, "WATCH_SECONDS", 1)
    token.replace()
    cluster = Cluster(token.kubeconfig(), SystemClock())
    one = WatchedPods(cluster, await cluster.connect(), namespace)
    yield one
    one.task.cancel()
    await asyncio.wait({one.task})
    cluster.close()


async def test_a_watch_goes_on_with_the_token_that_has_replaced_another(
    control_plane: ControlPlane, namespace: str, pods: Pods, token: RotatedToken, watched: WatchedPods
) -> None:
    """Nothing is lost: each watch resumes from the version of the last, without a list."""
    await pods.create("one", {"app": "llm"})
    await eventually(lambda: watched.cache.objects)
    mark = control_plane.audit.mark()
    first = token.file.read_text()
    await asyncio.to_thread(token.replace)
    await asyncio.to_thread(token.end, 1)
    stranger = Api(control_plane.url, control_plane.client_ca, token=first)

    async def refused() -> bool:
        try:
            await asyncio.to_thread(stranger.get, PODS_PATH.format(namespace=namespace))
        except RefusedByApi as error:
            return error.status == 401
        return False

    await found(refused, what="the end of the first token")
    stranger.close()
    after = control_plane.audit.mark()
    user = f"system:serviceaccount:{namespace}:rotated-{namespace}"
    await eventually(lambda: control_plane.audit.records(user, since=after), what="a watch with the second token")
    await pods.create("two", {"app": "llm"})
    await eventually(lambda: len(watched.cache.objects) == 2)
    assert watched.failures == []
    assert {record.verb for record in control_plane.audit.records(user, since=mark)} <= {"watch", "list"}
    lists = [record for record in control_plane.audit.records(user, since=mark) if record.verb == "list"]
    assert all("limit" not in record.path for record in lists), "the informer lists in pages; the stranger does not"
