"""The documents of the metrics APIs as JSON values: lists of values, discovery, OpenAPI.

The averaging window is called `windowSeconds` in custom.metrics.k8s.io/v1beta2 and `window` in the other two. Times
have whole seconds (metav1.Time), rounded down: no value is presented as younger than it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from math import ceil, floor
from typing import Any, Final

from agent.scaling.served_metrics import SERVED, MetricKind
from agent.serve.metrics_api.answer import PODS, POOLS, ServedItem
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL, VERSIONS
from agent.serve.metrics_api.quantity import quantity

Document = dict[str, Any]


def custom_values(version: str, items: Sequence[Any]) -> Document:
    """The MetricValueList of a version. The items are documents of `custom_value`, encoded or not."""
    return _list("MetricValueList", CUSTOM, version, items)


def custom_value(version: str, item: ServedItem, selector: str, to_wall: float) -> Document:
    """The MetricValue of an item. `to_wall` is what to add to a monotonic time for seconds since 1970; `selector` is
    the metricLabelSelector of the request."""
    reference: Mapping[str, str] = {}
    if item.described is not None:
        api_version, kind, namespace, name = item.described
        reference = {"kind": kind, "namespace": namespace, "name": name, "apiVersion": api_version}
    matched = {"matchLabels": dict(item.labels)} if selector else None
    if version == "v1beta1":
        value = _value(item, "window", to_wall)
        return {"describedObject": reference, "metricName": item.metric, **value, "selector": matched}
    metric = {"name": item.metric, "selector": matched}
    return {"describedObject": reference, "metric": metric, **_value(item, "windowSeconds", to_wall)}


def external_values(version: str, items: Sequence[ServedItem], to_wall: float) -> Document:
    """The ExternalMetricValueList."""
    found: list[Document] = []
    for item in items:
        document = {"metricName": item.metric, "metricLabels": dict(item.labels)}
        found.append(document | _value(item, "window", to_wall))
    return _list("ExternalMetricValueList", EXTERNAL, version, found)


def group_list(groups: Sequence[str]) -> Document:
    """The APIGroupList."""
    items = [{name: value for name, value in group(each).items() if name != "apiVersion"} for each in groups]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": items}


def group(name: str) -> Document:
    """The APIGroup of a name."""
    versions = [{"groupVersion": f"{name}/{version}", "version": version} for version in VERSIONS[name]]
    return {"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": versions, "preferredVersion": versions[0]}


def resource_list(name: str, version: str) -> Document:
    """The APIResourceList of a version: every served metric, whatever is known of its values."""
    if name == EXTERNAL:
        names = [(metric, "ExternalMetricValueList") for metric in SERVED[MetricKind.EXTERNAL]]
    else:
        names = [(f"{PODS}/{metric}", "MetricValueList") for metric in SERVED[MetricKind.PODS]]
        names += [(f"{POOLS}/{metric}", "MetricValueList") for metric in SERVED[MetricKind.OBJECT]]
    resources = [
        {"name": each, "singularName": "", "namespaced": True, "kind": kind, "verbs": ["get"]} for each, kind in names
    ]
    return {
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": f"{name}/{version}",
        "resources": resources,
    }


def version_document(software: str) -> Document:
    """What /version has."""
    major, _, minor = software.partition(".")
    return {"major": major, "minor": minor.partition(".")[0], "gitVersion": f"v{software}"}


def openapi_v2(groups: Sequence[str], software: str) -> Document:
    """The OpenAPI 2 document of all groups. It has the paths of discovery: metrics are not written by tools."""
    return {
        "swagger": "2.0",
        "info": {"title": "inference-gateway-agent", "version": f"v{software}"},
        "paths": {path: _path(path, "2") for name in groups for path in _group_paths(name)},
        "definitions": {},
    }


def openapi_v3_index(groups: Sequence[str], software: str) -> Document:
    """The list of the OpenAPI 3 documents; the hash of each changes with the software."""
    paths = [f"apis/{name}/{version}" for name in groups for version in VERSIONS[name]]
    return {"paths": {path: {"serverRelativeURL": f"/openapi/v3/{path}?hash={software}"} for path in paths}}


def openapi_v3(name: str, version: str, software: str) -> Document:
    """The OpenAPI 3 document of one version of a group."""
    path = f"/apis/{name}/{version}/"
    return {
        "openapi": "3.0.0",
        "info": {"title": "inference-gateway-agent", "version": f"v{software}"},
        "paths": {path: _path(path, "3")},
        "components": {"schemas": {}},
    }


def _group_paths(name: str) -> list[str]:
    return [f"/apis/{name}/", *(f"/apis/{name}/{version}/" for version in VERSIONS[name])]


def _path(path: str, openapi: str) -> Document:
    words = [part.capitalize() for part in path.replace(".", "/").split("/") if part]
    operation: Document = {
        "description": "get available resources",
        "operationId": f"get{''.join(words)}Resources",
        "responses": {"200": {"description": "OK"}},
    }
    if openapi == "2":
        operation |= {"produces": ["application/json"], "schemes": ["https"]}
    return {"get": operation}


def _list(kind: str, name: str, version: str, items: Sequence[Any]) -> Document:
    return {"kind": kind, "apiVersion": f"{name}/{version}", "metadata": {}, "items": items}


def _value(item: ServedItem, window: str, to_wall: float) -> Document:
    value, at, window_seconds = item.value
    timestamp = whole_seconds(floor(at + to_wall))
    if window_seconds is None:
        return {"timestamp": timestamp, "value": quantity(value)}
    return {"timestamp": timestamp, window: ceil(window_seconds), "value": quantity(value)}


_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"


@lru_cache(64)  # the values of a list have the same few seconds
def whole_seconds(wall: int) -> str:
    """`2026-09-01T12:00:00Z`."""
    return datetime.fromtimestamp(wall, UTC).strftime(_TIME)
