"""A line: the way to one port of one server, with a connection that is opened when it is needed.

One GET at a time, each within its time-out. A connection that turns out to be closed when it is used again says
nothing: the same GET is sent once more on a new one.

A GET may be sent with another behind it in one write, which saves a server's small answer most of what asking costs.
That may only ever save: what the second one is told is told of a GET that stood alone, unless an HTTP answer came to
it. So when the first one fails or the connection ends behind it, the second was never asked; and when its answer is
lost or broken, it is asked once more by itself, and marked to be asked so from then on, for servers and proxies differ
in what they do with a GET that comes before they have answered the last one.
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


class Follower(Protocol):
    """A GET that is sent with another one in front of it."""

    @property
    def limit(self) -> int:
        """How many bytes its body may have."""
        ...

    @property
    def timeout(self) -> float:
        """Within how many seconds of the first one's answer its own must be here."""
        ...

    @property
    def request(self) -> bytes:
        """The GET alone."""
        ...

    apart: bool  # whether it has to be asked by itself

    def came(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        """It was answered."""
        ...

    def went_wrong(self, failure: FetchFailed) -> None:
        """It failed."""
        ...

    def unasked(self) -> None:
        """It will not be answered, and that says nothing."""
        ...


def _never_slow(line: Line) -> None:
    """Nobody needs to know that an answer takes its time."""


class Line:
    """`ask` while it is not `busy`; exactly one of `answered` and `failed` is called, unless it is closed before.

    `sent_at` is when the present or last GET was sent (monotonic seconds), `give_up_at` when it is too late for it.
    """

    __slots__ = (
        "_address", "_answered", "_connecting", "_connection", "_desk", "_failed", "_follower", "_last", "_limit",
        "_name", "_on_idle_close", "_on_slow", "_patience", "_reach", "_request", "_retried", "_second", "_timeout",
        "_two", "busy", "give_up_at", "sent_at",
    )  # fmt: skip

    def __init__(
        self,
        desk: Desk,
        address: str,
        on_idle_close: Callable[[], None],
        reach: Reach = PLAIN,
        name: str = "",
        on_slow: Callable[[Line], None] = _never_slow,
    ) -> None:
        self._desk = desk
        self._on_slow = on_slow
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
        self._follower: Follower | None = None  # what is sent behind the present GET
        self._second: Follower | None = None  # the present GET was sent so
        self._two = False  # the request is two GETs, whether or not anybody waits for the second
        self._patience = 0.0  # seconds to wait from `give_up_at` on: it is only the time at which an answer is slow
        self._last = False
        self.busy = False
        self.sent_at = float("-inf")
        self.give_up_at = 0.0

    @property
    def address(self) -> str:
        """Where it leads."""
        return self._address

    @property
    def open(self) -> bool:
        """Whether there is a connection."""
        connection = self._connection
        return connection is not None and connection.open

    def ask(
        self,
        request: bytes,
        limit: int,
        timeout: float,
        answered: Answered,
        failed: Failed,
        slow_after: float = 0.0,
        follower: Follower | None = None,
    ) -> None:
        """Send a GET; its body may have `limit` bytes and must be here `timeout` seconds from now.

        `on_slow` is called when it is not here `slow_after` seconds from now (0: never). With a `follower`, `request`
        is the GET and the follower's.
        """
        now = self._desk.now
        self._request, self._limit, self._timeout = request, limit, timeout
        self._answered, self._failed = answered, failed
        self._retried = False
        self.busy = True
        self.sent_at = now
        self.give_up_at = now + timeout
        if 0.0 < slow_after < timeout:
            self.give_up_at = now + slow_after
            self._patience = timeout - slow_after
        self._follower = follower
        self._two = follower is not None
        self._desk.asking(self)
        self._send()

    def drop(self) -> bool:
        """Wait no more for the follower, which was not asked then; False where there is none."""
        follower, self._follower = self._follower, None
        if follower is not None:
            follower.unasked()
        return follower is not None

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
        if self._patience:
            self.give_up_at += self._patience
            self._patience = 0.0
            self._on_slow(self)
            return
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
            connection.get(self._request, self._limit, self._came, self._went_wrong, two=self._two)

    def _came(self, body: bytes, whole: bool) -> None:  # noqa: FBT001
        answered = self._answered
        if self._two:
            connection, follower = self._connection, self._follower
            if connection is not None and follower is not None and connection.open:
                if answered is not None:
                    answered(body, whole)
                if self.busy:
                    self._follow(follower, connection)
                return
            if follower is not None:  # the server closes behind its answers
                follower.apart = True
                self.drop()
            elif connection is not None:  # what is still to come is for nobody
                connection.close()
        self._end()
        if self._last:
            self.close()
        if answered is not None:
            answered(body, whole)

    def _follow(self, follower: Follower, connection: Connection) -> None:
        """Wait for the second answer."""
        self._follower, self._second, self._two = None, follower, False
        self._request, self._limit, self._timeout = follower.request, follower.limit, follower.timeout
        self._answered, self._failed = follower.came, follower.went_wrong
        self._patience = 0.0
        self.give_up_at = self._desk.now + self._timeout
        connection.second(self._limit, self._came, self._went_wrong)

    def _went_wrong(self, failure: FetchFailed) -> None:
        second, self._second = self._second, None
        if second is not None and not failure.status:
            second.apart = True
            self._retried = True
            self.sent_at = self._desk.now
            self.give_up_at = self.sent_at + self._timeout
            self._send()
            return
        if failure.stale and not self._retried:
            self._retried = True
            self._connection = None
            self._send()
            return
        self.drop()
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
        self._follower = self._second = None
        self._patience = 0.0
