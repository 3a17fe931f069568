"""Objectives and rewrites of the tests, decoded from their JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw

from agent.kube.objectives import NEW_GROUP, OBJECTIVE, REWRITE, RuleObject, decode


def an_object(
    kind: str,
    name: str,
    spec: Any,
    group: str = NEW_GROUP,
    created: str = "2026-01-01T00:00:00Z",
    **metadata: Any,
) -> RuleObject:
    return decode(
        group,
        kind,
        Raw(
            msgspec.json.encode(
                {
                    "metadata": {
                        "name": name,
                        "namespace": "ns",
                        "uid": f"uid-{name}",
                        "resourceVersion": "1",
                        "generation": 1,
                        "creationTimestamp": created,
                        **metadata,
                    },
                    "spec": spec,
                }
            )
        ),
    )


def objective(name: str = "chat", priority: Any = 1, pool: Any = "llama", **others: Any) -> RuleObject:
    reference = pool if isinstance(pool, dict) else {"name": pool}
    return an_object(OBJECTIVE, name, {"poolRef": reference, "priority": priority}, **others)


def rewrite(name: str, *rules: Any, **others: Any) -> RuleObject:
    return an_object(REWRITE, name, {"poolRef": {"name": "llama"}, "rules": list(rules)}, **others)


def rule(target: str, *models: str) -> dict[str, Any]:
    return {"targets": [{"modelRewrite": target}], "matches": [{"model": {"value": model}} for model in models]}
