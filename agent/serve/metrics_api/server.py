"""The HTTP server of the metrics APIs: questions to answers, JSON, gzip, Status objects.

Every answer is made from memory. Discovery and OpenAPI are made once, so that the aggregation layer, which probes them
every few seconds and blocks the whole cluster's discovery while one is slow, gets them whatever the load and the state
of the model servers. A list of pods is made in steps of about a millisecond, between which requests are picked for. (A
thread that computes would delay each system call of the event loop by the interpreter's switch interval of 5 ms.)
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
from aiohttp import web

from agent.clock import Clock
from agent.events import Hook
from agent.events.metrics_api import MetricsRead
from agent.scaling.served_metrics import MetricSource
from agent.serve.http.responses import HttpError, json_bytes, text_response
from agent.serve.http.server import Authorize, HttpRoute, HttpServer
from agent.serve.metrics_api import documents
from agent.serve.metrics_api.access import question_of
from agent.serve.metrics_api.answer import (
    STEP,
    PoolOfApi,
    ReadLimits,
    ServedItem,
    Steps,
    external_metric,
    object_metric_in_steps,
)
from agent.serve.metrics_api.media_types import GZIP_BYTES, accepts_gzip, accepts_json
from agent.serve.metrics_api.paths import (
    VERSIONS,
    DocumentRequest,
    ExternalRequest,
    ObjectRequest,
)
from agent.serve.metrics_api.status import (
    BAD_PATH,
    NOT_ACCEPTABLE,
    OK,
    REFUSED,
    RESULTS,
    RequestRefused,
    status_document,
)
from agent.serve.tls.server import ServerTls

# A selector of 10 kB, percent-encoded, and the path before it.
MAX_LINE_BYTES: Final = 1 << 16
_WITHOUT_VALUES: Final = frozenset({404, 405})
_GZIP: Final = 16 + zlib.MAX_WBITS


class MetricsView(NamedTuple):
    """The pools and a source of their values at one instant, also when it is read later."""

    pools: Sequence[PoolOfApi]
    source: MetricSource


class MetricsApiServer:
    """Serves `groups` on `address`. `view` is called for each request for a metric; `limits` may be replaced while it
    runs; `not_ready` returns why the APIs cannot be read yet."""

    def __init__(
        self,
        address: str,
        *,
        groups: Sequence[str],
        view: Callable[[float], MetricsView],
        limits: ReadLimits,
        clock: Clock,
        hook: Hook,
        software: str,
        authorize: Authorize | None = None,
        tls: ServerTls | None = None,
        not_ready: Callable[[], list[str]] = list,
    ) -> None:
        self.limits = limits
        self._groups = frozenset(groups)
        self._view = view
        self._clock = clock
        self._hook = hook
        self._not_ready = not_ready
        self._documents = {path: msgspec.json.encode(each) for path, each in _documents(groups, software).items()}
        self.http = HttpServer(
            address,
            [
                *(HttpRoute(path, self._health, public=True, always_answered=True) for path in ("/healthz", "/livez")),
                HttpRoute("/readyz", self._ready, public=True, always_answered=True),
                HttpRoute("/{path:.*}", self._answer),
            ],
            hook,
            tls=tls,
            address_name="metricsApi.address",
            authorize=authorize,
            error_response=self._status,
            max_line_bytes=MAX_LINE_BYTES,
        )

    async def _health(self, request: web.Request) -> web.Response:
        return text_response("ok")

    async def _ready(self, request: web.Request) -> web.Response:
        reasons = self._not_ready()
        if reasons:
            raise HttpError(503, REFUSED, "; ".join(reasons))
        return text_response("ok")

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            question = question_of(request, self._groups)
            _check_accepted(request)
            if isinstance(question, DocumentRequest):
                body, read = self._documents[question.path], MetricsRead(OK)
            else:
                body, read = await self._metric(question)
        except RequestRefused as refused:
            raise HttpError(refused.code, refused.cause, str(refused)) from refused
        headers = {"Vary": "Accept, Accept-Encoding"}
        if len(body) > GZIP_BYTES and accepts_gzip(request.headers.get("Accept-Encoding", "")):
            body = await asyncio.to_thread(_gzip, body)
            headers["Content-Encoding"] = "gzip"
        self._hook(read)
        return json_bytes(body, headers=headers)

    async def _metric(self, question: ObjectRequest | ExternalRequest) -> tuple[bytes, MetricsRead]:
        now, wall, limits = self._clock.now(), self._clock.wall(), self.limits
        pools, source = self._view(now)

        if isinstance(question, ExternalRequest):
            items = external_metric(question, pools, source, limits, now)
            document = documents.external_values(question.version, items, wall - now)
            return msgspec.json.encode(document), MetricsRead(OK, "", "external", _age(items, now))
        items = await _in_turns(object_metric_in_steps(question, pools, source, limits, now))
        version, selector = question.version, question.metric_labels.text
        encoded: list[msgspec.Raw] = []
        for number, item in enumerate(items, 1):
            value = documents.custom_value(version, item, selector, wall - now)
            encoded.append(msgspec.Raw(msgspec.json.encode(value)))
            if not number % (2 * STEP):
                await asyncio.sleep(0)
        body = msgspec.json.encode(documents.custom_values(version, encoded))
        return body, MetricsRead(OK, "", "custom", _age(items, now))

    def _status(self, error: HttpError) -> web.Response:
        """The Status object of a refusal, counted. A connection whose sender is not known is closed: it may have begun
        before the authorities of the sender's certificate were known."""
        result = error.code
        if result not in RESULTS:
            result = BAD_PATH if error.status in _WITHOUT_VALUES else REFUSED
        self._hook(MetricsRead(result, str(error)))
        body = msgspec.json.encode(status_document(error.status, str(error)))
        response = json_bytes(body, error.status, error.headers)
        if error.status == 401:
            response.force_close()
        return response


async def _in_turns(steps: Steps) -> list[ServedItem]:
    """The items; the event loop does other work between the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: list[ServedItem] = end.value
            return found
        await asyncio.sleep(0)


def _check_accepted(request: web.Request) -> None:
    if not accepts_json(",".join(request.headers.getall("Accept", []))):
        raise RequestRefused(406, NOT_ACCEPTABLE, "only the media type application/json is served")


def _age(items: Sequence[ServedItem], now: float) -> float | None:
    return max((now - item.value.at for item in items), default=None)


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return compressor.compress(body) + compressor.flush()


def _documents(groups: Sequence[str], software: str) -> Mapping[str, dict[str, Any]]:
    found = {
        "/apis": documents.group_list(groups),
        "/version": documents.version_document(software),
        "/openapi/v2": documents.openapi_v2(groups, software),
        "/openapi/v3": documents.openapi_v3_index(groups, software),
    }
    for name in groups:
        found[f"/apis/{name}"] = documents.group(name)
        for version in VERSIONS[name]:
            found[f"/apis/{name}/{version}"] = documents.resource_list(name, version)
            found[f"/openapi/v3/apis/{name}/{version}"] = documents.openapi_v3(name, version, software)
    return found
