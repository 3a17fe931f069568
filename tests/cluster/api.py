"""A client of the API server for the tests: JSON in, JSON out, an exception for every refusal.

It shares no code with the client of the agent, whose work the tests check.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import requests

from tests.cluster.certificates import KeyPair

FIELD_MANAGER: Final = "tests"
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"

Object = dict[str, Any]


class RefusedByApi(Exception):
    """The API server's refusal: the HTTP status, the reason (`Invalid`, `Forbidden`), and the message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


class Api:
    """Requests to one API server as one user: by client certificate, by bearer token, or anonymous."""

    def __init__(self, url: str, ca: Path, *, certificate: KeyPair | None = None, token: str = "") -> None:
        self.url = url
        self._session = requests.Session()
        self._session.trust_env = False  # no proxy and no .netrc of the user
        self._session.verify = str(ca)
        if certificate is not None:
            self._session.cert = (str(certificate.certificate), str(certificate.key))
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"
        self._plurals: dict[tuple[str, str], tuple[str, bool]] = {}

    def close(self) -> None:
        self._session.close()

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        content_type: str = "application/json",
        query: Mapping[str, str | int] | None = None,
        accept: str = "application/json",
    ) -> Any:
        """The JSON of an answer, or its text if it is none. Raises RefusedByApi for a status of 400 and above."""
        answer = self._session.request(
            method,
            self.url + path,
            params=query,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": content_type, "Accept": accept},
            timeout=60,
        )
        try:
            document = answer.json()
        except requests.JSONDecodeError:
            document = answer.text
        if answer.status_code >= 400:
            status = document if isinstance(document, dict) else {}
            raise RefusedByApi(answer.status_code, status.get("reason", ""), status.get("message", answer.text))
        return document

    def get(self, path: str, **query: str | int) -> Any:
        return self.request("GET", path, query=query)

    def get_table(self, path: str) -> Any:
        """The list as `kubectl get` prints it (meta.k8s.io/v1 Table)."""
        return self.request("GET", path, accept="application/json;as=Table;v=v1;g=meta.k8s.io")

    def post(self, path: str, body: Any) -> Any:
        return self.request("POST", path, body)

    def patch(self, path: str, body: Any, content_type: str = MERGE) -> Any:
        return self.request("PATCH", path, body, content_type=content_type)

    def delete(self, path: str, grace: int | None = None) -> Any:
        """`grace` is the time in seconds that the object may take to end; 0 removes it at once."""
        return self.request("DELETE", path, query={} if grace is None else {"gracePeriodSeconds": grace})

    def path_of(self, manifest: Mapping[str, Any]) -> str:
        """The path of the object in a manifest. KeyError: the API server does not know its kind."""
        version, kind = manifest["apiVersion"], manifest["kind"]
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._plurals:
            for row in self.get(group)["resources"]:
                if "/" not in row["name"]:
                    self._plurals[version, row["kind"]] = (row["name"], row["namespaced"])
        plural, namespaced = self._plurals[version, kind]
        name, namespace = manifest["metadata"]["name"], manifest["metadata"].get("namespace", "default")
        return f"{group}/namespaces/{namespace}/{plural}/{name}" if namespaced else f"{group}/{plural}/{name}"

    def apply(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """The object after a server-side apply; a field that the schema does not have is refused."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": "true"}
        if dry_run:
            query["dryRun"] = "All"
        applied: Object = self.request("PATCH", self.path_of(manifest), manifest, content_type=APPLY, query=query)
        return applied

    def create(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """The object after its creation; a field that the schema does not have is refused."""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        path = self.path_of(manifest).rpartition("/")[0]
        created: Object = self.request("POST", path, copy.deepcopy(dict(manifest)), query=query)
        return created
