"""An API server whose answers the test chooses: lists in pages, watches, and their faults.

A real kube-apiserver does not send half an event or go silent on request; tests/cluster has the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import orjson

from agent.serve.listen import close_in_turn
from tests.waiting import eventually

PODS = "/api/v1/namespaces/ns/pods"


def pod(name: str, version: int = 1, ip: str = "10.0.0.1", **labels: str) -> dict[str, Any]:
    """A ready pod."""
    return {
        "metadata": {
            "name": name,
            "namespace": "ns",
            "uid": f"uid-{name}-{version}",
            "resourceVersion": str(version),
            "labels": {"app": "llama"} | labels,
        },
        "spec": {"nodeName": "n1", "containers": [{"name": "c"}]},
        "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": "True"}]},
    }


class WatchStream:
    """One open watch."""

    def __init__(self, writer: asyncio.StreamWriter, path: str, query: Mapping[str, str]) -> None:
        self.path = path
        self.query = query
        self._writer = writer
        self.closed = asyncio.Event()

    def send(self, data: bytes) -> None:
        """Bytes of the body, as one chunk."""
        self._writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    def event(self, kind: str, item: Mapping[str, Any]) -> None:
        """One event."""
        self.send(orjson.dumps({"type": kind, "object": item}) + b"\n")

    def end(self) -> None:
        """The end of the response."""
        self._writer.write(b"0\r\n\r\n")
        self.closed.set()

    def abort(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()
        self.closed.set()


class FakeApiServer:
    """`collections` by path, 404 for another; `pods` are those of PODS. `version` is that of the lists; `refuse` is the
    status of every answer while it is set, `refuse_headers` its other headers."""

    def __init__(self, *pods: Mapping[str, Any], collections: dict[str, list[Any]] | None = None) -> None:
        self.collections = collections if collections is not None else {PODS: list(pods)}
        self.version = 10
        self.refuse: int | None = None
        self.refuse_headers = ""
        self.silent = False  # requests are read and not answered
        self.expired = False  # the next watch is answered 410
        self.lists: list[Mapping[str, str]] = []
        self.watches: list[WatchStream] = []
        self.requests = 0
        self.authorizations: list[str] = []
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._stopped = False

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self._stopped = False

    async def stop(self) -> None:
        for watch in self.watches:
            watch.closed.set()
        self._stopped = True
        if self._server is not None:
            close_in_turn(self._server)
            await asyncio.sleep(0)
        for writer in tuple(self._writers):
            writer.transport.abort()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def kubeconfig(self, folder: Path, token: str = "a-token") -> str:
        """The path of a kubeconfig for this server."""
        path = folder / "kubeconfig"
        path.write_bytes(
            orjson.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [{"name": "c", "cluster": {"server": self.url}}],
                    "users": [{"name": "u", "user": {"token": token}}],
                }
            )
        )
        return str(path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._stopped:  # accepted before the port was closed
            writer.transport.abort()
            return
        self._writers.add(writer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.requests += 1
                target = urlsplit(head.split(" ", 2)[1])
                query = {name: values[0] for name, values in parse_qs(target.query).items()}
                for line in head.split("\r\n"):
                    if line.lower().startswith("authorization:"):
                        self.authorizations.append(line.split(": ", 1)[1])
                if self.silent:
                    await reader.read()
                    break
                if self.refuse is not None:
                    status = {"kind": "Status", "code": self.refuse, "message": "not now"}
                    self._answer(writer, self.refuse, status, self.refuse_headers)
                elif target.path not in self.collections:
                    self._answer(writer, 404, {"kind": "Status", "code": 404, "message": "no such resource"})
                elif "watch" not in query:
                    self._list(writer, self.collections[target.path], query)
                elif self.expired:
                    self.expired = False
                    self._answer(writer, 410, {"kind": "Status", "code": 410, "message": "too old"})
                else:
                    writer.write(
                        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
                    )
                    watch = WatchStream(writer, target.path, query)
                    self.watches.append(watch)
                    await watch.closed.wait()
                    if writer.transport.is_closing():
                        break
        self._writers.discard(writer)
        writer.close()

    async def watch(self, path: str) -> WatchStream:
        """The latest open watch of this collection, once there is one."""

        def open_ones() -> list[WatchStream]:
            return [watch for watch in self.watches if watch.path == path and not watch.closed.is_set()]

        return (await eventually(open_ones))[-1]

    def _list(self, writer: asyncio.StreamWriter, items: list[Any], query: Mapping[str, str]) -> None:
        self.lists.append(query)
        start, size = int(query.get("continue", "0")), int(query["limit"])
        token = str(start + size) if start + size < len(items) else ""
        meta = {"resourceVersion": str(self.version), "continue": token}
        self._answer(writer, 200, {"metadata": meta, "items": items[start : start + size]})

    def _answer(self, writer: asyncio.StreamWriter, status: int, body: Mapping[str, Any], headers: str = "") -> None:
        data = orjson.dumps(body)
        fields = f"content-type: application/json\r\ncontent-length: {len(data)}\r\n{headers}"
        head = f"HTTP/1.1 {status} X\r\n{fields}\r\n"
        writer.write(head.encode() + data)
