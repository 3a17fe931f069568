"""A client of `/v1/state/watch` alone: it rebuilds the state from the events, and snapshots from the state."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp

from agent.signals import WAITING, Reading, Value
from agent.state.health import Health
from agent.state.identity import Identity
from agent.state.snapshot import EndpointView, Prefix, Snapshot, Work

PATIENCE = 30.0  # seconds until a test that waits for an event fails


RULES = ("objectives", "rewrites")


class StreamEvent:
    """One server-sent event, or a comment (kind is empty)."""

    def __init__(self, kind: str, id: str, data: str) -> None:
        self.kind = kind
        self.id = id
        self.data = data


def parse_event(text: str) -> StreamEvent:
    """The event in one block of lines."""
    fields = {"event": "", "id": "", "data": ""}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name in fields:
            fields[name] += value.removeprefix(" ")
        elif line.startswith(":"):
            fields["data"] = value.strip()
    return StreamEvent(fields["event"], fields["id"], fields["data"])


class RebuiltState:
    """The state after the events so far. `now` is the client's own clock, which need not be the agent's."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self.epoch = ""
        self.version = 0
        self.last_id = ""
        self.kinds: list[str] = []
        # This clock at uptime 0 of the agent. Messages take time to arrive, so the minimum is the best estimate.
        self.uptime_zero = float("inf")
        self.pools: dict[str, dict[str, tuple[dict[str, Any], float]]] = {}
        self.sources: dict[str, tuple[dict[str, Any] | None, float]] = {}
        self.rules: dict[str, dict[str, Any]] = {}  # objectives and rewrites
        self.flows: dict[str, dict[str, Any] | None] = {}

    def apply(self, event: StreamEvent) -> None:
        """Apply one event or comment."""
        if not event.data:
            return
        document = json.loads(event.data)
        if document["epoch"] != self.epoch:
            if event.kind == "change":
                raise AssertionError("a change of an epoch without a state event")
            self.uptime_zero = float("inf")
        self.uptime_zero = min(self.uptime_zero, self._now() - document["uptime_seconds"])
        if not event.kind:
            return
        self.kinds.append(event.kind)
        uptime = document["uptime_seconds"]
        if event.kind == "state":
            self.pools = {
                pool["pool"]: {each["address"]: (each, uptime) for each in pool["endpoints"]}
                for pool in document["pools"]
            }
            self.sources = {pool["pool"]: (pool["discovery"], uptime) for pool in document["pools"]}
            self.rules = {pool["pool"]: {key: pool[key] for key in RULES} for pool in document["pools"]}
            self.flows = {pool["pool"]: pool["flow"] for pool in document["pools"]}
        else:
            if not document["since"] <= max(self.version, document["since"]) <= document["version"]:
                raise AssertionError("a change that does not follow the state")
            for pool in document["pools"]:
                known = self.pools.setdefault(pool["pool"], {})
                self.sources[pool["pool"]] = (pool["discovery"], uptime)
                self.rules[pool["pool"]] = {key: pool[key] for key in RULES}
                if "flow" in pool:
                    self.flows[pool["pool"]] = _with_rooms(self.flows.get(pool["pool"]), pool["flow"])
                known.update({each["address"]: (each, uptime) for each in pool["changed"]})
                for address in pool["removed"]:
                    known.pop(address, None)
            for name in document["removed_pools"]:
                self.pools.pop(name, None)
        self.epoch, self.version, self.last_id = document["epoch"], document["version"], event.id

    def document(self, uptime: float) -> list[dict[str, Any]]:
        """`pools` as `/v1/state` returns it at this uptime: ages and backlog advanced since their event."""
        return [
            {
                "pool": name,
                "discovery": _source(*self.sources[name], uptime),
                **self.rules[name],
                "by_health": {
                    health.value: sum(each["health"] == health for each, _ in endpoints.values()) for health in Health
                },
                "flow": self.flows.get(name),
                "endpoints": [_advanced(*endpoints[address], uptime) for address in sorted(endpoints)],
            }
            for name, endpoints in self.pools.items()
        ]

    def snapshot(self, pool: str) -> Snapshot:
        """The pool now, in the agent's own types; its times are on the client's clock."""
        now = self._now()
        endpoints = self.pools[pool]
        views = [_view(*endpoints[address], self.uptime_zero, now) for address in sorted(endpoints)]
        return Snapshot(pool, self.version, now, now, tuple(views))


def _source(source: dict[str, Any] | None, published_at: float, uptime: float) -> dict[str, Any] | None:
    if source is None or source["current"] or source["age_seconds"] is None:
        return source
    return {**source, "age_seconds": source["age_seconds"] + uptime - published_at}


def _with_rooms(before: dict[str, Any] | None, changed: dict[str, Any] | None) -> dict[str, Any] | None:
    """Flow control with the rooms that have changed and those that have not; null is the end of one."""
    if changed is None:
        return None
    rooms = ({} if before is None else before["rooms"]) | changed["rooms"]
    return {**changed, "rooms": {address: room for address, room in rooms.items() if room is not None}}


def _advanced(endpoint: dict[str, Any], published_at: float, uptime: float) -> dict[str, Any]:
    passed = uptime - published_at
    advanced: dict[str, Any] = json.loads(json.dumps(endpoint))
    if advanced["page_age_seconds"] is not None:
        advanced["page_age_seconds"] += passed
    for signal in advanced["signals"].values():
        if signal["age_seconds"] is not None:
            signal["age_seconds"] += passed
    work = advanced["work"]
    work["prefill_seconds"] = max(work["queue_seconds"], work["prefill_seconds"] - passed)
    work["prefill_tokens"] = max(0.0, work["prefill_tokens"] - passed * work["rate_tokens_per_second"])
    return advanced


def _view(endpoint: dict[str, Any], published_at: float, uptime_zero: float, now: float) -> EndpointView:
    as_of = uptime_zero + published_at
    stale_after = endpoint["stale_after_seconds"]
    readings: dict[str, Reading] = {}
    for name, signal in endpoint["signals"].items():
        value = signal["value"]
        if value is not None:
            kept: Value = frozenset(value) if isinstance(value, list) else float(value)
            readings[name] = Reading(kept, as_of - signal["age_seconds"])
    page_age = endpoint["page_age_seconds"]
    page_at = None if page_age is None else as_of - page_age
    health, reason = Health(endpoint["health"]), endpoint["reason"]
    if health is Health.HEALTHY and page_at is not None and now - page_at >= stale_after:
        health, reason = Health.STALE, "no_fresh_page"
    work = endpoint["work"]
    waiting = readings.get(WAITING)
    corrected = waiting is not None and now - waiting.at < stale_after
    return EndpointView(
        endpoint["address"],
        endpoint["engine"],
        health,
        reason,
        {},
        readings,
        page_at,
        endpoint["failures"],
        stale_after,
        Work(
            work["requests"],
            as_of + work["prefill_tokens"] / work["rate_tokens_per_second"],
            work["rate_tokens_per_second"],
            work["rate_source"],
            corrected,
            work["foreign_requests"],
            work["queue_seconds"],
        ),
        Prefix(endpoint["prefix"]["predicted_hit_tokens"], endpoint["prefix"]["measured_hit_tokens"]),
        identity=Identity(f"{endpoint['namespace']}/{endpoint['pod']}".strip("/"), endpoint["node"]),
    )


class WatchClient:
    """Follows the stream of one agent; reconnects with the id of the last event whenever it is disconnected."""

    def __init__(self, base_url: str, now: Callable[[], float]) -> None:
        self.rebuilt = RebuiltState(now)
        self.connections = 0
        self._url = f"{base_url}/v1/state/watch"
        self._applied = asyncio.Condition()
        self._reading = asyncio.Event()
        self._reading.set()
        self._task = asyncio.create_task(self._follow())

    async def wait(self, condition: Callable[[RebuiltState], bool]) -> None:
        """Wait until the state fulfils the condition."""
        async with asyncio.timeout(PATIENCE), self._applied:
            await self._applied.wait_for(lambda: self._task.done() or condition(self.rebuilt))
        if self._task.done():
            self._task.result()

    def pause(self) -> None:
        """Stop reading; the connection stays open."""
        self._reading.clear()

    def resume(self) -> None:
        """Continue reading."""
        self._reading.set()

    async def stop(self) -> None:
        """Stop following."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self) -> None:
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                headers = {"Last-Event-ID": self.rebuilt.last_id} if self.rebuilt.last_id else {}
                try:
                    async with session.get(self._url, headers=headers) as response:
                        self.connections += response.status == 200
                        await self._read(response)
                except aiohttp.ClientError:
                    await asyncio.sleep(0)

    async def _read(self, response: aiohttp.ClientResponse) -> None:
        rest = b""
        async for chunk in response.content.iter_any():
            await self._reading.wait()
            rest += chunk
            *blocks, rest = rest.split(b"\n\n")
            for block in blocks:
                self.rebuilt.apply(parse_event(block.decode()))
            async with self._applied:
                self._applied.notify_all()
