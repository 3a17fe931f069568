"""The threads in which the blocking calls of the API server's client run.

`concurrent.futures.ThreadPoolExecutor` waits for its threads when the interpreter ends, and a call to a server that
does not answer takes a minute. The threads here are daemons: the process ends without them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_Call = Callable[[], None]


class DaemonThreads(Executor):
    """Runs each call in a thread of its own, which is used again by later calls; there are as many threads as calls at
    one time, because each informer holds one while it waits for events."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._lock = Lock()
        self._threads = 0
        self._idle = 0  # threads that wait for a call, less the calls that wait for them
        self._closed = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Begin the call. Raises RuntimeError after `shutdown`."""
        future: Future[T] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                _run(future, fn, *args, **kwargs)

        with self._lock:
            if self._closed:
                raise RuntimeError("the connection to the API server is closed")
            self._idle -= 1
            if self._idle < 0:
                self._idle += 1
                self._threads += 1
                Thread(target=self._work, args=(call,), name=f"{self._name}-{self._threads}", daemon=True).start()
            else:
                self._calls.put(call)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Refuse further calls, and end the threads once their calls have returned. It waits for none of them."""
        with self._lock:
            self._closed = True
            for _ in range(self._threads):
                self._calls.put(None)

    def _work(self, first: _Call) -> None:
        call: _Call | None = first
        while call is not None:
            call()
            del call  # a waiting thread keeps no result alive
            with self._lock:
                self._idle += 1
            call = self._calls.get()


def _run(future: Future[T], fn: Callable[..., T], *args: Any, **kwargs: Any) -> None:
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:  # noqa: BLE001  the caller gets every error
        future.set_exception(error)
    else:
        future.set_result(result)
