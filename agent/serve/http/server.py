"""One HTTP/1.1 server for a list of routes: GET and HEAD only, JSON errors, bounded memory, slow readers dropped.

HEAD returns what GET returns, without the body. A response stays in memory until its reader has received it, so the
number of responses in progress is limited, and a reader that does not receive its response in time is disconnected.

Input that is not HTTP (an endless line) gets a plain-text 400 from the HTTP library. It is not logged, so that a
client cannot fill the log. A client without TLS on a port with TLS, or with it on one without, is counted.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, NamedTuple, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler as AppHandler
from aiohttp.typedefs import Middleware

from agent.config.addresses import split_address
from agent.events import Hook
from agent.events.process import WatcherDropped
from agent.serve.http.responses import HttpError, json_response
from agent.serve.listen import ListeningSocket, listen
from agent.serve.tls.connection import MakeProtocol, PlainAcceptor, TlsAcceptor
from agent.serve.tls.server import ADMIN, ServerTls

MAX_RESPONSES: Final = 64
WRITE_SECONDS: Final = 5.0
KEEPALIVE_SECONDS: Final = 75.0
MAX_REQUEST_BODY_BYTES: Final = 1 << 16  # no handler reads a body
MAX_LINE_BYTES: Final = 8190  # of the request line
CHUNK_BYTES: Final = 1 << 16  # of a stream that are written before the reader must have received the previous ones
_LOG: Final = logging.getLogger("igw.http")
_LIBRARY_LOG: Final = logging.getLogger("igw.http.aiohttp")
_LIBRARY_LOG.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
# Returns if a request for this path may be answered. Raises HttpError.
Authorize = Callable[[web.Request, str], Awaitable[None]]
# The answer to a request that is refused.
ErrorResponse = Callable[[HttpError], web.Response]


class CannotListen(Exception):
    """The server cannot listen on its address; the text names the address and what to change."""


class HttpRoute(NamedTuple):
    """A path and its handler. A part of the path in braces matches any text without a slash.

    `parameters` are the query parameters that it accepts, any other is a 400; None: the query is ignored.
    `always_answered`: not refused when too many responses are in progress, for health checks. `streamed`: not counted
    among the responses in progress, because the handler has a limit of its own. `public`: answered to everybody.
    """

    path: str
    handler: Handler
    parameters: tuple[str, ...] | None = None
    always_answered: bool = False
    streamed: bool = False
    public: bool = False


class ReaderDropped(Exception):
    """The reader is disconnected; the text is the reason, a label value of `igw_watchers_dropped_total`."""

    def __init__(self, reason: str, response: web.StreamResponse) -> None:
        super().__init__(reason)
        self.response = response


class HttpServer:
    """Serves `routes` on `address` (`host:port`; port 0 takes a free one), which `address_name` describes in errors.

    With `tls` it serves HTTPS. `GET /` lists the paths of the routes. At most `max_responses` responses are in
    progress; a reader has `write_seconds` to receive one, or one event of a stream. `on_stop` is called when the server
    begins to stop: it has to end the streams. `authorize` is called before the handler of each route that is not
    public, and before the 404 for a path without a route; None: everybody may read everything. `error_response` makes
    the answer to a request that is refused. A request line over `max_line_bytes` is refused by the HTTP library.
    """

    def __init__(
        self,
        address: str,
        routes: Sequence[HttpRoute],
        hook: Hook,
        *,
        tls: ServerTls | None = None,
        address_name: str = "address",
        max_responses: int = MAX_RESPONSES,
        write_seconds: float = WRITE_SECONDS,
        on_stop: Callable[[], None] = lambda: None,
        authorize: Authorize | None = None,
        error_response: ErrorResponse = HttpError.response,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self.in_progress = 0  # responses that are built or sent now, streams not counted
        self._address = address
        self._address_name = address_name
        self._routes = [HttpRoute("/", self._index), *routes]
        self._hook = hook
        self._tls = tls
        self._max_responses = max_responses
        self._write_seconds = write_seconds
        self._on_stop = on_stop
        self._authorize = authorize
        self._error_response = error_response
        self._max_line_bytes = max_line_bytes
        self._always_answered = frozenset(route.path for route in routes if route.always_answered)
        self._streamed = frozenset(route.path for route in routes if route.streamed)
        self._public = frozenset(route.path for route in routes if route.public)
        self._runner: web.AppRunner | None = None
        self._acceptor: TlsAcceptor | PlainAcceptor | None = None
        self._listener: ListeningSocket | None = None

    async def start(self) -> int:
        """Listen; returns the port. `CannotListen` when the address is in use or cannot be used."""
        host, port = split_address(self._address)
        layers: list[Middleware] = [self._limit, _errors_as_json(self._error_response)]
        if self._authorize is not None:
            layers.append(_authorized(self._authorize, self._public))
        app = web.Application(middlewares=layers, client_max_size=MAX_REQUEST_BODY_BYTES)
        app.add_routes([web.get(route.path, _checked(route)) for route in self._routes])
        app.on_shutdown.append(self._shutdown)
        runner = web.AppRunner(
            app,
            access_log=None,
            logger=_LIBRARY_LOG,
            shutdown_timeout=2.0,
            lingering_time=1.0,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=self._max_line_bytes,
        )
        await runner.setup()
        protocol = cast(MakeProtocol, runner.server)
        if self._tls is None:
            self._acceptor = PlainAcceptor(ADMIN.name, self._hook, protocol)
        else:
            self._acceptor = TlsAcceptor(self._tls, protocol)
        try:
            self._listener = await listen(self._acceptor, host, port)
        except OSError as error:
            await runner.cleanup()
            raise CannotListen(_listen_error(self._address, self._address_name, error)) from error
        self._runner = runner
        return self._listener.port

    async def stop(self) -> None:
        """End the streams, finish the responses in progress, close."""
        runner, self._runner = self._runner, None
        if self._listener is not None:
            self._listener.close()
        if self._acceptor is not None:
            self._acceptor.close()
        await asyncio.sleep(0)  # the port is closed
        if runner is not None:
            await runner.cleanup()

    async def _index(self, request: web.Request) -> web.Response:
        return json_response({"paths": sorted(route.path for route in self._routes if "{" not in route.path)})

    async def _shutdown(self, app: web.Application) -> None:
        self._on_stop()

    @web.middleware
    async def _limit(self, request: web.Request, handler: AppHandler) -> web.StreamResponse:
        """Limit the responses in progress, and disconnect a reader that does not receive its response in time."""
        if self.in_progress >= self._max_responses and request.path not in self._always_answered:
            self._hook(WatcherDropped("too_many"))
            message = f"{self._max_responses} responses are in progress already; retry later"
            return self._error_response(HttpError(503, "too_many_requests", message, headers={"Retry-After": "1"}))
        counted = request.path not in self._streamed
        self.in_progress += counted
        try:
            response = await handler(request)
            if isinstance(response, web.Response):
                await self._send(request, response)
        except ReaderDropped as dropped:
            self._hook(WatcherDropped(str(dropped)))
            if request.transport is not None:
                request.transport.abort()
            return dropped.response
        finally:
            self.in_progress -= counted
        return response

    async def _send(self, request: web.Request, response: web.Response) -> None:
        """Send the whole response. `ReaderDropped` when it takes too long; a reader that leaves is not an error."""
        try:
            async with asyncio.timeout(self._write_seconds):
                await response.prepare(request)
                await response.write_eof()
            response.body = None  # an idle connection keeps a reference to its last response
        except ConnectionResetError:
            return
        except TimeoutError:
            raise ReaderDropped("slow", response) from None


class HttpStream:
    """A response without an end. Each chunk is written only when the reader has received the previous ones."""

    def __init__(
        self, request: web.Request, content_type: str, headers: Mapping[str, str], write_seconds: float
    ) -> None:
        self.response = web.StreamResponse(headers=headers)
        self.response.content_type = content_type
        self._request = request
        self._write_seconds = write_seconds

    async def start(self) -> None:
        """Send the headers. ConnectionResetError when the reader has left, here and in `send`."""
        await self.response.prepare(self._request)

    async def send(self, payload: bytes) -> None:
        """Send the whole payload. `ReaderDropped` when the reader does not receive it in time."""
        try:
            async with asyncio.timeout(self._write_seconds):
                for start in range(0, len(payload), CHUNK_BYTES):
                    await self.response.write(payload[start : start + CHUNK_BYTES])
        except TimeoutError:
            raise self.dropped("slow") from None

    def dropped(self, reason: str) -> ReaderDropped:
        """The exception that disconnects this reader."""
        return ReaderDropped(reason, self.response)


def _checked(route: HttpRoute) -> Handler:
    """The route's handler behind a check of the query's parameters."""
    accepted = route.parameters
    if accepted is None:
        return route.handler

    async def handle(request: web.Request) -> web.StreamResponse:
        for name in request.query:
            if name not in accepted:
                choice = f"the parameters are: {', '.join(accepted)}" if accepted else "there are none"
                message = f"there is no parameter {name[:64]!r} here; {choice}"
                raise HttpError(400, "unknown_parameter", message, param=name)
            if len(request.query.getall(name)) > 1:
                message = f"the parameter {name!r} is repeated; write it once"
                raise HttpError(400, "repeated_parameter", message, param=name)
        return await route.handler(request)

    return handle


def _authorized(authorize: Authorize, public: frozenset[str]) -> Middleware:
    """The check before each handler. The path is that of the route which answers, so that no spelling of a path is
    decided as another one than it is answered as; a route with a part in braces is decided by the path itself."""

    @web.middleware
    async def handle(request: web.Request, handler: AppHandler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        path = resource.canonical if isinstance(resource, web.PlainResource) else request.path
        if path not in public:
            await authorize(request, path)
        return await handler(request)

    return handle


def _errors_as_json(error_response: ErrorResponse) -> Middleware:
    """Every error is JSON, never HTML or plain text."""

    @web.middleware
    async def handle(request: web.Request, handler: AppHandler) -> web.StreamResponse:
        try:
            return await handler(request)
        except HttpError as refused:
            return error_response(refused)
        except web.HTTPException as refused:
            return error_response(_library_error(request, refused))
        except (ConnectionResetError, ReaderDropped):
            raise
        except Exception:  # noqa: BLE001 - a defect in one handler must not affect others; the log has the trace
            _LOG.exception("the handler of %s failed", request.path[:128].encode("unicode_escape").decode())
            message = "the handler failed; the agent's log has the reason"
            return error_response(HttpError(500, "internal_error", message))

    return handle


def _library_error(request: web.Request, refused: web.HTTPException) -> HttpError:
    """What the HTTP library raises for an unknown path, another method and other refusals."""
    headers = {"Allow": refused.headers["Allow"]} if "Allow" in refused.headers else None
    if refused.status == 404:
        return HttpError(404, "not_found", f"there is no path {request.path[:128]!r}; GET / lists the paths")
    if refused.status == 405:
        message = f"method {request.method[:16]} is not allowed; use GET or HEAD"
        return HttpError(405, "method_not_allowed", message, headers=headers)
    return HttpError(refused.status, "refused", refused.reason or "refused", headers=headers)


def _listen_error(address: str, name: str, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"{address} is in use by another program: stop that program, or choose another {name}"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{address} is not an address of this machine: choose another {name}"
    if error.errno in {errno.EACCES, errno.EPERM}:
        return f"this user may not listen on {address}: choose a port above 1023 for the {name}"
    return f"cannot listen on {address}: {error.strerror or error}"
