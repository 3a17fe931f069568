"""ServiceAccounts of the tests: their roles, their tokens, and the files that a pod finds them in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.api import Api, Object
from tests.cluster.control_plane import ControlPlane

RBAC = "rbac.authorization.k8s.io"


class ServiceAccount(NamedTuple):
    """A ServiceAccount by namespace and name; `user` is what RBAC and the audit log call it."""

    namespace: str
    name: str

    @property
    def user(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    @property
    def subject(self) -> Object:
        """The subject of a binding."""
        return {"kind": "ServiceAccount", "namespace": self.namespace, "name": self.name}


class MountedToken(NamedTuple):
    """What a pod has of its ServiceAccount: the folder with `token`, `ca.crt` and `namespace`, and the variables."""

    folder: Path
    variables: dict[str, str]


def create_service_account(api: Api, namespace: str, name: str) -> ServiceAccount:
    api.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": namespace, "name": name}})
    return ServiceAccount(namespace, name)


def grant(api: Api, account: ServiceAccount, rules: Sequence[Object], namespace: str = "") -> None:
    """Give an account these rules (`apiGroups`, `resources`, `verbs`, ...) in a namespace, or in the whole cluster."""
    kind, place = ("Role", {"namespace": namespace}) if namespace else ("ClusterRole", {})
    name = f"{account.namespace}-{account.name}"
    version = f"{RBAC}/v1"
    metadata: dict[str, Any] = {"name": name, **place}
    api.apply({"apiVersion": version, "kind": kind, "metadata": metadata, "rules": list(rules)})
    reference = {"apiGroup": RBAC, "kind": kind, "name": name}
    api.apply(
        {
            "apiVersion": version,
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": reference,
            "subjects": [account.subject],
        }
    )


def request_token(api: Api, account: ServiceAccount, seconds: int = 3600, audiences: Sequence[str] = ()) -> str:
    """A token of the account (TokenRequest API). The API server accepts no lifetime below 600 seconds."""
    spec: dict[str, Any] = {"expirationSeconds": seconds, "audiences": list(audiences)}
    path = f"/api/v1/namespaces/{account.namespace}/serviceaccounts/{account.name}/token"
    requested = api.post(path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec})
    token: str = requested["status"]["token"]
    return token


def api_of(control_plane: ControlPlane, account: ServiceAccount) -> Api:
    """A client that is the account."""
    return Api(control_plane.url, control_plane.client_ca, token=request_token(control_plane.api, account))


def kubeconfig_of(control_plane: ControlPlane, account: ServiceAccount) -> Path:
    """A kubeconfig with a token of the account."""
    token = request_token(control_plane.api, account)
    return control_plane.kubeconfig(f"{account.namespace}-{account.name}", {"token": token})


def mount_token(
    control_plane: ControlPlane, account: ServiceAccount, folder: Path, seconds: int = 3600
) -> MountedToken:
    """Write the files that a pod of the account has; again, to rotate the token as a kubelet does."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "token": request_token(control_plane.api, account, seconds),
        "ca.crt": control_plane.client_ca.read_text(),
        "namespace": account.namespace,
    }
    for name, text in contents.items():
        part = folder / f".{name}.part"
        part.touch(mode=0o600)
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
    variables = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(control_plane.port)}
    return MountedToken(folder, variables)
