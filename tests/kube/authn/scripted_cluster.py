"""A cluster whose API server answers reviews as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from agent.kube.authn.reviews import ACCESS_REVIEWS, TOKEN_REVIEWS


class ScriptedCluster:
    """`users` by token and `allowed` pairs of user and path. `failure` is raised instead of an answer; while `held`,
    reviews wait for `release`."""

    def __init__(self) -> None:
        self.users: dict[str, str] = {}
        self.allowed: set[tuple[str, str]] = set()
        self.failure: Exception | None = None
        self.answer: bytes | None = None
        self.no_cluster: Exception | None = None
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.running = 0
        self.max_running = 0
        self._released = asyncio.Event()
        self._released.set()

    def hold(self) -> None:
        self._released.clear()

    def release(self) -> None:
        self._released.set()

    def count(self, path: str) -> int:
        """The number of reviews of this kind."""
        return sum(1 for found, _ in self.requests if found == path)

    async def connect(self) -> ScriptedCluster:
        if self.no_cluster is not None:
            raise self.no_cluster
        return self

    async def run(self, call: Callable[..., Any], *arguments: Any) -> Any:
        self.running += 1
        self.max_running = max(self.running, self.max_running)
        try:
            await self._released.wait()
            return call(*arguments)
        finally:
            self.running -= 1

    def send(self, method: str, path: str, body: bytes) -> bytes:
        assert method == "POST"
        spec = json.loads(body)["spec"]
        self.requests.append((path, spec))
        if self.failure is not None:
            raise self.failure
        if self.answer is not None:
            return self.answer
        if path == TOKEN_REVIEWS:
            user = self.users.get(spec["token"])
            status: dict[str, Any] = {"error": "invalid bearer token"}
            if user is not None:
                status = {"authenticated": True, "user": {"username": user}, "audiences": spec.get("audiences")}
        else:
            assert path == ACCESS_REVIEWS
            wanted = (spec["user"], spec["nonResourceAttributes"]["path"])
            status = {"allowed": wanted in self.allowed, "reason": "" if wanted in self.allowed else "no role"}
        return json.dumps({"status": status}).encode()
