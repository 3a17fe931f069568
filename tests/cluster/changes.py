"""Every change of the objects of a collection while a test runs, by a watch: nothing between two looks is missed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from types import TracebackType
from typing import Self

import aiohttp

from tests.cluster.api import Object
from tests.cluster.control_plane import ControlPlane


class Changes:
    """The states of each object of the collection at `path`, in their order, by name, from the entry to the exit. A
    watch that ends before fails the test at the exit."""

    def __init__(self, control_plane: ControlPlane, path: str) -> None:
        self.states: dict[str, list[Object]] = {}
        self._control_plane = control_plane
        self._path = path
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        began = asyncio.Event()
        self._task = asyncio.create_task(self._watch(began))
        await began.wait()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _watch(self, began: asyncio.Event) -> None:
        plane = self._control_plane
        tls = ssl.create_default_context(cafile=str(plane.client_ca))
        tls.load_cert_chain(plane.admin.certificate, plane.admin.key)
        url = f"{plane.url}{self._path}?watch=1&resourceVersion=0"
        timeout = aiohttp.ClientTimeout(total=None)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, read_bufsize=1 << 20) as client,
                client.get(url, ssl=tls) as answer,
            ):
                answer.raise_for_status()
                began.set()
                async for line in answer.content:
                    event = json.loads(line)
                    if event["type"] in {"ADDED", "MODIFIED"}:
                        self.states.setdefault(event["object"]["metadata"]["name"], []).append(event["object"])
            raise AssertionError(f"the watch of {self._path} ended")
        finally:
            began.set()
