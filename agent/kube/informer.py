"""Keeps an `ObjectCache` current: lists, watches, resumes, and lists again after an error.

    list (pages) --> watch from its resource version --> events --> on_change
      ^                 |  ended, or a read failed: watch again from the last version
      +-----------------+  410, an unreadable event: list again; an error of the server: back-off

While the API server does not answer, the last known objects stay, and `Informer.status` says since when. The blocking
calls run in threads of the informers, never in those of the event loop's name resolution.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from random import Random
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from agent.clock import Clock
from agent.kube.cache import Change, LineBuffer, ObjectCache, UnreadableAnswer
from agent.kube.errors import ApiFailed, Unreachable

if TYPE_CHECKING:
    from agent.kube.client import KubeClient, WatchResponse

T = TypeVar("T")
PAGE_SIZE: Final = 250  # objects per page: decoding one page takes a few milliseconds
# The server ends a watch after this time, and the next one begins where it ended: a watch that is longer without a
# byte has lost its server. This bounds how long a silent one goes unnoticed; a request each minute is its price.
WATCH_SECONDS: Final = 50
SILENCE_SECONDS: Final = 60.0
# A watch that ends within this time without an event makes no progress: the next one waits.
SHORTEST_WATCH_SECONDS: Final = 1.0
OBJECTS_PER_STEP: Final = 50  # of a page; decoding them takes a few milliseconds
FIRST_BACKOFF_SECONDS: Final = 0.5
MAX_BACKOFF_SECONDS: Final = 30.0
# Events of one read are applied in one step of the event loop, up to this number.
EVENTS_PER_STEP: Final = 100
NOT_FOUND: Final = 404
NOT_LISTED: Final = "not listed yet"  # `failing` before the first answer


class InformerStatus(NamedTuple):
    """Whether the objects are current. `synced`: a list was complete once. `failing` is why the last call failed, empty
    where it did not; `since` is then the time of the last answer before, or of the start (monotonic seconds). `code` is
    the HTTP status of the failure, 0 without an answer. `missing`: the API server has no such kind."""

    synced: bool
    failing: str
    since: float
    missing: bool
    code: int = 0


class Informer:
    """Objects of one kind. `path` is the collection's, such as /api/v1/namespaces/default/pods; `selectors` limit it:
    `labelSelector`, `fieldSelector`. `on_change` is called on the event loop after each change of objects or status."""

    def __init__(
        self,
        client: KubeClient,
        cache: ObjectCache[Any],
        path: str,
        selectors: Mapping[str, str],
        clock: Clock,
        executor: Executor,
        on_change: Callable[[], None],
    ) -> None:
        self.path = path
        self.cache = cache
        self.status = InformerStatus(synced=False, failing=NOT_LISTED, since=clock.now(), missing=False)
        self._client = client
        self.selectors = dict(selectors)
        self._clock = clock
        self._executor = executor
        self._on_change = on_change
        self._answered_at = clock.now()
        self._backoff = FIRST_BACKOFF_SECONDS
        self._open: WatchResponse | None = None
        self._random = Random(f"{path} {id(self)}")  # agents that lose the API server together come back apart

    async def run(self) -> None:
        """Keep the cache current until it is cancelled."""
        try:
            while True:
                try:
                    if not self.cache.resource_version:
                        await self._list()
                    began = self._clock.now()
                    await self._watch()
                    if self._clock.now() < began + SHORTEST_WATCH_SECONDS:
                        await self._back_off()
                    else:
                        self._backoff = FIRST_BACKOFF_SECONDS
                except (ApiFailed, Unreachable, UnreadableAnswer) as error:
                    await self._failed(error)
        finally:
            if self._open is not None:
                self._open.close()

    # -- within --------------------------------------------------------------------------------------------------------

    async def _list(self) -> None:
        cache, token = self.cache, ""
        cache.begin_list()
        while True:
            parameters = {**self.selectors, "limit": str(PAGE_SIZE)}
            if token:
                parameters["continue"] = token
            items, token = cache.page(await self._call(self._client.get, self.path, parameters))
            self._answered_at = self._clock.now()
            for start in range(0, len(items), OBJECTS_PER_STEP):
                await asyncio.sleep(0)  # requests are picked between two steps
                cache.add(items[start : start + OBJECTS_PER_STEP])
            if not token:
                break
        changed = cache.end_list()
        self._succeeded(changed=changed)

    async def _watch(self) -> None:
        parameters = {
            **self.selectors,
            "resourceVersion": self.cache.resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        try:
            response = await self._call(self._client.watch, self.path, parameters, SILENCE_SECONDS)
        except ApiFailed as failed:
            if failed.status == 410:
                self.cache.resource_version = ""
                return
            raise
        self._open = response
        self._succeeded(changed=False)
        lines = LineBuffer()
        try:
            while data := await self._call(response.read):
                if not await self._apply(lines.feed(data)):
                    return
        finally:
            self._open = None
            response.close()

    async def _apply(self, lines: list[bytes]) -> bool:
        """Apply events; False where a list has to follow."""
        changed = False
        for number, line in enumerate(lines, 1):
            change = self.cache.apply(line)
            if change is Change.RELIST:
                return False
            changed = changed or change is Change.OBJECTS
            if number % EVENTS_PER_STEP == 0:
                await asyncio.sleep(0)
        if lines:
            self._backoff = FIRST_BACKOFF_SECONDS
        self._succeeded(changed=changed)
        return True

    async def _call(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, call, *arguments)

    def _succeeded(self, *, changed: bool) -> None:
        self._answered_at = self._clock.now()
        before = self.status
        if before.failing or not before.synced:
            self.status = InformerStatus(synced=True, failing="", since=self._clock.now(), missing=False)
        if changed or self.status is not before:
            self._on_change()

    async def _failed(self, error: Exception) -> None:
        """Record the failure and wait before the next try, for half to all of a time that doubles, and for as long as
        the API server requires (429 and 503 with Retry-After)."""
        if isinstance(error, UnreadableAnswer):
            self.cache.resource_version = ""
        missing = isinstance(error, ApiFailed) and error.status == NOT_FOUND
        before = self.status
        since = before.since if before.failing else self._answered_at
        code = error.status if isinstance(error, ApiFailed) else 0
        self.status = InformerStatus(before.synced, str(error) or type(error).__name__, since, missing, code)
        if self.status != before:
            self._on_change()
        await self._back_off(error.retry_after or 0.0 if isinstance(error, ApiFailed) else 0.0)

    async def _back_off(self, at_least: float = 0.0) -> None:
        wait = self._backoff * self._random.uniform(0.5, 1.0)
        self._backoff = min(2 * self._backoff, MAX_BACKOFF_SECONDS)
        await asyncio.sleep(at_least + wait)
