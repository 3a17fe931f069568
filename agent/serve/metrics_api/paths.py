"""From the target of an HTTP request to the question: which document, or which metric of which objects.

Shapes (https://github.com/kubernetes-sigs/custom-metrics-apiserver describes them), after `/apis/GROUP/VERSION`:

    custom.metrics.k8s.io     /namespaces/NS/RESOURCE/NAME/METRIC    one object, `*`: all that labelSelector matches
                              /RESOURCE/NAME/METRIC                  an object without a namespace
                              /namespaces/NS/metrics/METRIC          the namespace as an object
    external.metrics.k8s.io   /namespaces/NS/METRIC                  labelSelector matches labels of the metric

A path is split before it is decoded: `%2F` is a character of a name. The decision whether the sender may read it and
the answer are made of the same parsed question, so no spelling of a path is decided as another one.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from agent.kube.authn.reviews import Attributes, NonResource, Resource
from agent.serve.metrics_api.selectors import EVERYTHING, BadSelector, LabelRequirements, parse_selector
from agent.serve.metrics_api.status import BAD_PATH, BAD_SELECTOR, RequestRefused

CUSTOM: Final = "custom.metrics.k8s.io"
EXTERNAL: Final = "external.metrics.k8s.io"
# The versions of each group, the preferred one first.
VERSIONS: Final = {CUSTOM: ("v1beta2", "v1beta1"), EXTERNAL: ("v1beta1",)}
ALL: Final = "*"
_MAX_SEGMENT: Final = 253
_LABELS: Final = "labelSelector"
_METRIC_LABELS: Final = "metricLabelSelector"


class DocumentRequest(NamedTuple):
    """A document that does not depend on the load: discovery, OpenAPI or the version."""

    path: str

    @property
    def attributes(self) -> Attributes:
        """What the sender needs the right for."""
        return NonResource(self.path)


class ObjectRequest(NamedTuple):
    """A metric of objects. `resource` is the plural, with its group or without; `name` may be ALL. For a metric of a
    namespace itself the resource is `namespaces` and `name` its name."""

    version: str
    namespace: str
    resource: str
    name: str
    metric: str
    labels: LabelRequirements
    metric_labels: LabelRequirements

    @property
    def attributes(self) -> Attributes:
        """What the sender needs the right for, as the API server derives it from the path."""
        if self.resource == "namespaces":
            return Resource("get", CUSTOM, self.version, "metrics", self.name, self.metric)
        return Resource("get", CUSTOM, self.version, self.resource, self.namespace, self.name, self.metric)


class ExternalRequest(NamedTuple):
    """An external metric. The path has no name of an object, so that the verb of the right is `list`."""

    version: str
    namespace: str
    metric: str
    metric_labels: LabelRequirements

    @property
    def attributes(self) -> Attributes:
        """What the sender needs the right for."""
        return Resource("list", EXTERNAL, self.version, self.metric, self.namespace)


ApiRequest = DocumentRequest | ObjectRequest | ExternalRequest


def parse_target(target: str, groups: frozenset[str]) -> ApiRequest:
    """The question of a request target (path and query as they were sent), where these `groups` are served. Raises
    RequestRefused."""
    path, _, query = target.partition("?")
    segments = [_decoded(segment) for segment in path.removeprefix("/").split("/")]
    if segments and not segments[-1]:
        segments.pop()
    if any(not segment or len(segment) > _MAX_SEGMENT for segment in segments):
        raise _no_path(path)
    if segments[:1] == ["apis"] and len(segments) > 3:
        _, group, version, *rest = segments
        if group not in groups or version not in VERSIONS[group]:
            raise RequestRefused(
                404, BAD_PATH, f"API version {group}/{version} is not served here; GET /apis lists them"
            )
        return _metric_request(group, version, rest, _parameters(query))
    plain = "/" + "/".join(segments)
    if plain in documents(groups):
        return DocumentRequest(plain)
    raise _no_path(path)


def documents(groups: frozenset[str]) -> frozenset[str]:
    """The paths of all documents."""
    found = {"/apis", "/version", "/openapi/v2", "/openapi/v3"}
    for group in groups:
        found.add(f"/apis/{group}")
        for version in VERSIONS[group]:
            found |= {f"/apis/{group}/{version}", f"/openapi/v3/apis/{group}/{version}"}
    return frozenset(found)


class _Parameters(NamedTuple):
    labels: LabelRequirements
    metric_labels: LabelRequirements


def _metric_request(group: str, version: str, rest: list[str], parameters: _Parameters) -> ApiRequest:
    labels, metric_labels = parameters
    if group == EXTERNAL:
        if len(rest) == 3 and rest[0] == "namespaces":
            return ExternalRequest(version, rest[1], rest[2], labels)
        raise _bad_shape("/namespaces/NAMESPACE/METRIC", rest)
    match rest:
        case ["namespaces", namespace, "metrics", metric]:
            return ObjectRequest(version, "", "namespaces", namespace, metric, EVERYTHING, metric_labels)
        case ["namespaces", namespace, resource, name, metric]:
            return ObjectRequest(version, namespace, resource, name, metric, labels, metric_labels)
        case [resource, name, metric] if resource != "namespaces":
            return ObjectRequest(version, "", resource, name, metric, labels, metric_labels)
    raise _bad_shape("/namespaces/NAMESPACE/RESOURCE/NAME/METRIC, /RESOURCE/NAME/METRIC", rest)


def _bad_shape(shapes: str, rest: list[str]) -> RequestRefused:
    code = 400 if len(rest) < 3 else 404
    return RequestRefused(code, BAD_PATH, f"invalid request path: after the version it has to be {shapes}")


def _no_path(path: str) -> RequestRefused:
    return RequestRefused(404, BAD_PATH, f"there is no path {path[:128]!r}; GET /apis lists the groups")


def _decoded(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode()
    except UnicodeDecodeError:
        raise RequestRefused(400, BAD_PATH, "a part of the path is not UTF-8 in percent-encoding") from None
    if not text.isprintable():
        raise RequestRefused(400, BAD_PATH, "a part of the path has a control character")
    return text


def _parameters(query: str) -> _Parameters:
    """The selectors of a query. Other parameters (`timeout`, `pretty`) change no answer."""
    found: dict[str, str] = {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, errors="strict")
    except ValueError:
        raise RequestRefused(400, BAD_SELECTOR, "the query is not UTF-8 in percent-encoding") from None
    for name, value in pairs:
        if name == "watch" and value not in {"", "0", "false"}:
            raise RequestRefused(405, BAD_PATH, "metrics cannot be watched; read them again instead")
        if name in {_LABELS, _METRIC_LABELS}:
            if name in found:
                raise RequestRefused(400, BAD_SELECTOR, f"the parameter {name} is repeated; join its parts by commas")
            found[name] = value
    return _Parameters(_selector(_LABELS, found), _selector(_METRIC_LABELS, found))


def _selector(name: str, found: dict[str, str]) -> LabelRequirements:
    try:
        return parse_selector(found.get(name, ""))
    except BadSelector as error:
        raise RequestRefused(400, BAD_SELECTOR, f"unable to parse {name}: {error}") from error
