"""A line: the way to one port of one server, with a connection that is opened when it is needed.

One GET at a time, each within its time-out. A connection that turns out to be closed when it is used again says
nothing: the same GET is sent once more on a new one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from functools import partial
from typing import Protocol

from agent.scrape.fetch import Answered, Buffers, Connection, Failed, FetchFailed
from agent.scrape.reach import PLAIN, Reach, tls_failure


class Desk(Protocol):
    """What a line needs of the loop that it belongs to."""

    @property
    def now(self) -> float:
        """Monotonic seconds."""
        ...

    @property
    def buffers(self) -> Buffers:
        """Where answers are read to."""
        ...

    def asking(self, line: Line) -> None:
        """It waits for an answer: look after its time-out."""
        ...

    def asked(self, line: Line) -> None:
        """It waits no more."""
        ...

    def run(self, line: Line) -> asyncio.Task[None]:
        """A task that opens its connection."""
        ...


class Line:
    """`ask` while it is not `busy`; exactly one of `answered` and `failed` is called, unless it is closed before.

    `sent_at` is when the present or last GET was sent (monotonic seconds), `give_up_at` when it is too late for it.
    """

    __slots__ = (
        "_address", "_answered", "_connecting", "_connection", "_desk", "_failed", "_last", "_limit",
        "_name", "_on_idle_close", "_reach", "_request", "_retried", "_timeout", "busy", "give_up_at", "sent_at",
    )  # fmt: skip

    def __init__(
        self, desk: Desk, address: str, on_idle_close: Callable[[], None], reach: Reach = PLAIN, name: str = ""
    ) -> None:
        self._desk = desk
        self._address = address
        self._reach = reach
        self._name = name  # what the pool calls its host, to be asked for by TLS
        self._on_idle_close = on_idle_close
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._request = b""
        self._limit = 0
        self._timeout = 0.0
        self._answered: Answered | None = None
        self._failed: Failed | None = None
        self._retried = False
        self._last = False
        self.busy = False
        self.sent_at = float("-inf")
        self.give_up_at = 0.0

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._address

    def ask(self, request: bytes, limit: int, timeout: float, answered: Answered, failed: Failed) -> None:
        """Send a GET; its body may have `limit` bytes and must be here `timeout` seconds from now."""
        now = self._desk.now
        self._request, self._limit, self._timeout = request, limit, timeout
        self._answered, self._failed = answered, failed
        self._retried = False
        self.busy = True
        self.sent_at = now
        self.give_up_at = now + timeout
        self._desk.asking(self)
        self._send()

    def leave(self) -> None:
        """Let what is asked be answered, and close behind it."""
        self._last = True
        if not self.busy:
            self.close()

    def close(self) -> None:
        """Close without a word to anybody."""
        self._end()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def time_out(self) -> None:
        """The answer has not come in time."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            self._went_wrong(FetchFailed("timeout", f"no connection within {self._timeout:g} s"))
        elif self._connection is not None:
            self._connection.fail("timeout", f"no whole answer within {self._timeout:g} s")

    async def connect(self) -> None:
        """Open a connection and ask on it."""
        host, _, port = self._address.rpartition(":")
        host = host.strip("[]")
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                partial(Connection, self._desk.buffers, self._on_idle_close),
                host,
                int(port),
                ssl=self._reach.context(),
                server_hostname=self._reach.server_name(self._name or host),
            )
        except FetchFailed as unreadable:
            failure = unreadable
        except ConnectionRefusedError:
            failure = FetchFailed("refused", f"nobody listens at {self._address}")
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
            self.sent_at = self._desk.now
            self._send()
            return
        self._connecting = None
        if self.busy:
            self._went_wrong(failure)

    def _send(self) -> None:
        connection = self._connection
        if connection is None or not connection.open:
            self._connecting = self._desk.run(self)
        else:
            connection.get(self._request, self._limit, self._came, self._went_wrong)

    def _came(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        answered = self._answered
        self._end()
        if self._last:
            self.close()
        if answered is not None:
            answered(body, whole)

    def _went_wrong(self, failure: FetchFailed) -> None:
        if failure.stale and not self._retried:
            self._retried = True
            self._connection = None
            self._send()
            return
        failed = self._failed
        self._end()
        if self._last:
            self.close()
        if failed is not None:
            failed(failure)

    def _end(self) -> None:
        if self.busy:
            self.busy = False
            self._desk.asked(self)
        self._answered = self._failed = None
