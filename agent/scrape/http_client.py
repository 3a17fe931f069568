"""An HTTP client for one port of one server, with one connection that is opened on demand.

It has one active GET at a time, each with a time-out. If a persistent connection turns out to be closed when it is used
again, the GET is sent once more on a new one, and this is not a failure.

A GET may be sent together with a second one in one write (HTTP/1.1 pipelining), which saves most of the CPU time of the
second, whose response is small. Pipelining must not change any result: the result of the second GET is that of a single
GET, unless it has an HTTP response. If the first GET fails or the server closes the connection after it, the second
counts as not sent. If the second response is missing or malformed, the second GET is sent once more alone, and marked
to be sent alone from then on: servers and proxies differ in how they handle a GET that arrives before they have
responded to the previous one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from typing import Protocol

from agent.scrape.http_connection import BufferPool, FetchFailed, HttpConnection, OnBody, OnFailure
from agent.scrape.server_access import PLAIN, ServerAccess, tls_failure


class ClientContext(Protocol):
    """What a client needs of the scrape loop."""

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        ...

    @property
    def buffers(self) -> BufferPool:
        """The buffers for responses."""
        ...

    def request_started(self, client: HttpClient) -> None:
        """The client has an active GET: check its deadline from now on."""
        ...

    def request_ended(self, client: HttpClient) -> None:
        """The client has no active GET any more."""
        ...

    def start_connect(self, client: HttpClient) -> asyncio.Task[None]:
        """Start a task that opens the client's connection."""
        ...


class PipelinedRequest(Protocol):
    """The second of two pipelined GETs."""

    @property
    def limit(self) -> int:
        """The maximum size of the body of its response in bytes."""
        ...

    @property
    def timeout(self) -> float:
        """Its time-out in seconds, counted from the first response."""
        ...

    @property
    def request(self) -> bytes:
        """The GET alone."""
        ...

    send_alone: bool  # the server does not answer it when it is pipelined

    def completed(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        """It has a response with status 200."""
        ...

    def failed(self, failure: FetchFailed) -> None:
        """It failed."""
        ...

    def not_sent(self) -> None:
        """There will be no response, for a reason that is not the server's."""
        ...


def _ignore_slow(client: HttpClient) -> None:
    """The default for `on_slow`."""


class HttpClient:
    """Call `get` while it is not `busy`; exactly one of `on_body` and `on_failure` is called, unless it is closed
    before.

    `sent_at` is when the active or last GET was sent (monotonic seconds), `deadline` when it times out.
    """

    __slots__ = (
        "_access", "_address", "_close_when_idle", "_connecting", "_connection", "_context", "_extra_time", "_limit",
        "_name", "_on_body", "_on_failure", "_on_idle_close", "_on_slow", "_pipelined", "_request", "_retried",
        "_second", "_timeout", "_two", "busy", "deadline", "sent_at",
    )  # fmt: skip

    def __init__(
        self,
        context: ClientContext,
        address: str,
        on_idle_close: Callable[[], None],
        access: ServerAccess = PLAIN,
        name: str = "",
        on_slow: Callable[[HttpClient], None] = _ignore_slow,
    ) -> None:
        self._context = context
        self._on_slow = on_slow
        self._address = address
        self._access = access
        self._name = name  # the server's host name in the pool, for TLS
        self._on_idle_close = on_idle_close
        self._connection: HttpConnection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._request = b""
        self._limit = 0
        self._timeout = 0.0
        self._on_body: OnBody | None = None
        self._on_failure: OnFailure | None = None
        self._retried = False
        self._pipelined: PipelinedRequest | None = None  # sent after the active GET, in the same write
        self._second: PipelinedRequest | None = None  # the active GET is this one
        self._two = False  # the request is two GETs, even if the second one's response is not wanted any more
        self._extra_time = 0.0  # `deadline` is when `on_slow` is called; the time-out is this many seconds later
        self._close_when_idle = False
        self.busy = False
        self.sent_at = float("-inf")
        self.deadline = 0.0

    @property
    def address(self) -> str:
        """The server's host:port."""
        return self._address

    @property
    def connected(self) -> bool:
        """Whether it has an open connection."""
        connection = self._connection
        return connection is not None and connection.open

    def get(
        self,
        request: bytes,
        limit: int,
        timeout: float,
        on_body: OnBody,
        on_failure: OnFailure,
        slow_after: float = 0.0,
        pipelined: PipelinedRequest | None = None,
    ) -> None:
        """Send a GET; the body of its response may have `limit` bytes and must be complete within `timeout` seconds.

        `on_slow` is called when it is not complete after `slow_after` seconds (0: never). With `pipelined`, `request`
        is the GET followed by the pipelined one.
        """
        now = self._context.now
        self._request, self._limit, self._timeout = request, limit, timeout
        self._on_body, self._on_failure = on_body, on_failure
        self._retried = False
        self.busy = True
        self.sent_at = now
        self.deadline = now + timeout
        if 0.0 < slow_after < timeout:
            self.deadline = now + slow_after
            self._extra_time = timeout - slow_after
        self._pipelined = pipelined
        self._two = pipelined is not None
        self._context.request_started(self)
        self._send()

    def drop_pipelined(self) -> bool:
        """Do not wait for the pipelined request, which counts as not sent; False where there is none."""
        pipelined, self._pipelined = self._pipelined, None
        if pipelined is not None:
            pipelined.not_sent()
        return pipelined is not None

    def close_when_idle(self) -> None:
        """Close after the active GET, or at once."""
        self._close_when_idle = True
        if not self.busy:
            self.close()

    def close(self) -> None:
        """Close without calling a callback."""
        self._end()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def time_out(self) -> None:
        """The deadline has passed."""
        if self._extra_time:
            self.deadline += self._extra_time
            self._extra_time = 0.0
            self._on_slow(self)
            return
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            self._fail(FetchFailed("timeout", f"no connection within {self._timeout:g} s"))
        elif self._connection is not None:
            self._connection.fail("timeout", f"no complete response within {self._timeout:g} s")

    async def connect(self) -> None:
        """Open a connection and send the active GET on it."""
        host, _, port = self._address.rpartition(":")
        host = host.strip("[]")
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                partial(HttpConnection, self._context.buffers, self._on_idle_close),
                host,
                int(port),
                ssl=self._access.ssl_context(),
                server_hostname=self._access.server_name(self._name or host),
            )
        except FetchFailed as unreadable:
            failure = unreadable
        except ConnectionRefusedError:
            failure = FetchFailed("refused", f"connection refused by {self._address}")
        except ssl.SSLError as error:
            failure = tls_failure(error, self._address)
        except ConnectionError as error:
            failure = FetchFailed("reset", f"{self._address} closed the connection: {error}")
        except (OSError, UnicodeError) as error:
            failure = FetchFailed("unreachable", f"{self._address} cannot be reached: {error}")
        else:
            self._connecting = None
            if not self.busy:
                connection.close()
                return
            self._connection = connection
            self.sent_at = self._context.now
            self._send()
            return
        self._connecting = None
        if self.busy:
            self._fail(failure)

    def _send(self) -> None:
        connection = self._connection
        if connection is None or not connection.open:
            self._connecting = self._context.start_connect(self)
        else:
            connection.get(self._request, self._limit, self._complete, self._fail, pipelined=self._two)

    def _complete(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        on_body = self._on_body
        if self._two:
            connection, pipelined = self._connection, self._pipelined
            if connection is not None and pipelined is not None and connection.open:
                if on_body is not None:
                    on_body(body, whole)
                if self.busy:
                    self._read_second(pipelined, connection)
                return
            if pipelined is not None:  # the server closes the connection after each response
                pipelined.send_alone = True
                self.drop_pipelined()
            elif connection is not None:  # the second response is not wanted any more
                connection.close()
        self._end()
        if self._close_when_idle:
            self.close()
        if on_body is not None:
            on_body(body, whole)

    def _read_second(self, second: PipelinedRequest, connection: HttpConnection) -> None:
        """Make the pipelined request the active one."""
        self._pipelined, self._second, self._two = None, second, False
        self._request, self._limit, self._timeout = second.request, second.limit, second.timeout
        self._on_body, self._on_failure = second.completed, second.failed
        self._extra_time = 0.0
        self.deadline = self._context.now + self._timeout
        connection.read_second(self._limit, self._complete, self._fail)

    def _fail(self, failure: FetchFailed) -> None:
        second, self._second = self._second, None
        if second is not None and not failure.status:
            second.send_alone = True
            self._retried = True
            self.sent_at = self._context.now
            self.deadline = self.sent_at + self._timeout
            self._send()
            return
        if failure.stale and not self._retried:
            self._retried = True
            self._connection = None
            self._send()
            return
        self.drop_pipelined()
        on_failure = self._on_failure
        self._end()
        if self._close_when_idle:
            self.close()
        if on_failure is not None:
            on_failure(failure)

    def _end(self) -> None:
        if self.busy:
            self.busy = False
            self._context.request_ended(self)
        self._on_body = self._on_failure = None
        self._pipelined = self._second = None
        self._extra_time = 0.0
