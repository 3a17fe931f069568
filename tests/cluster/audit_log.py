"""The audit log of an API server: who requested what, and what RBAC decided (audit.k8s.io/v1, level Metadata)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final, NamedTuple

# RequestReceived comes before the decision. A watch that is open has only its ResponseStarted.
POLICY: Final[dict[str, Any]] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


class AuditRecord(NamedTuple):
    """One request: of `resource` (`pods`, `pods/status`) in `group`, or of `path` where that is none.

    `allowed` is the decision of the authorisation, None where none was taken; `reason` names the binding and the role
    that allowed it. `status` is the HTTP status.
    """

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    path: str
    allowed: bool | None
    reason: str
    status: int


class AuditLog:
    """Reads the file that an API server appends to.

    The API server writes a record after it has sent the response: wait for the record of the last request
    (tests/waiting.py).
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def mark(self) -> int:
        """The present end of the log, for `since`."""
        return self._path.stat().st_size if self._path.exists() else 0

    def records(self, user: str = "", since: int = 0) -> list[AuditRecord]:
        """The requests of a user (all users by default), in the order of their responses, each once."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as log:
            log.seek(since)
            text = log.read()
        events: dict[str, Any] = {}
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            event = json.loads(line)
            events[event["auditID"]] = event
        return [record for record in map(_record, events.values()) if user in {"", record.user}]

    def denied(self, user: str = "", since: int = 0) -> list[AuditRecord]:
        """The requests that the authorisation forbade."""
        return [record for record in self.records(user, since) if record.allowed is False]


def _record(event: dict[str, Any]) -> AuditRecord:
    target = event.get("objectRef", {})
    annotations = event.get("annotations", {})
    decision = annotations.get("authorization.k8s.io/decision")
    subresource = target.get("subresource", "")
    return AuditRecord(
        user=event.get("impersonatedUser", event["user"]).get("username", ""),
        verb=event["verb"],
        group=target.get("apiGroup", ""),
        resource="/".join(part for part in (target.get("resource", ""), subresource) if part),
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
        path=event["requestURI"],
        allowed=None if decision is None else decision == "allow",
        reason=annotations.get("authorization.k8s.io/reason", ""),
        status=event.get("responseStatus", {}).get("code", 0),
    )
