"""Polls the accelerator sources that have no page: each periodically in a thread, one call at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from agent.accelerators.device import Device, Devices
from agent.accelerators.device_source import DeviceSource, DeviceSourceFailed
from agent.app.tasks import Task, Tasks
from agent.clock import Clock
from agent.state.devices import DeviceState, ExporterKey


class PolledSource(NamedTuple):
    """A source, its poll interval, and the time-out of a call (seconds)."""

    source: DeviceSource
    interval: float
    timeout: float


class DeviceSourcePoller:
    """Polls sources and reports to the state. All methods are called on the event loop."""

    def __init__(self, state: DeviceState, clock: Clock, tasks: Tasks) -> None:
        self._state = state
        self._clock = clock
        self._tasks = tasks
        self._polling: list[tuple[Task, DeviceSource]] = []

    def set_sources(self, wanted: Mapping[ExporterKey, PolledSource]) -> None:
        """Replace the sources; all of them start again."""
        for task, source in self._polling:
            task.cancel()
            source.close()
        self._polling = [
            (
                self._tasks.run(f"device-source/{key.source}/{key.address}", partial(self._poll, key, polled)),
                polled.source,
            )
            for key, polled in wanted.items()
        ]

    def stop(self) -> None:
        """Stop polling."""
        self.set_sources({})

    async def _poll(self, key: ExporterKey, polled: PolledSource) -> None:
        clock = self._clock
        while True:
            at = clock.now()
            call = asyncio.ensure_future(asyncio.to_thread(polled.source.devices, at, clock.wall()))
            done, _ = await asyncio.wait({call}, timeout=polled.timeout)
            if not done:
                took = clock.now() - at
                self._state.failed(key, "timeout", f"no response within {polled.timeout:g} s", at, took)
                await asyncio.wait({call})  # a thread cannot be cancelled: poll again when it has ended
            self._report(key, call, at, late=not done)
            await asyncio.sleep(max(0.0, at + polled.interval - clock.now()))

    def _report(self, key: ExporterKey, call: asyncio.Future[list[Device]], at: float, *, late: bool) -> None:
        took = self._clock.now() - at
        try:
            devices = call.result()
        except DeviceSourceFailed as failed:
            if not late:
                self._state.failed(key, failed.reason, failed.detail, at, took)
        except Exception as error:  # noqa: BLE001 - a third-party library: the next poll may succeed
            self._state.failed(key, "client_error", f"{type(error).__name__}: {error}", at, took)
        else:
            self._state.observed(key, Devices(tuple(devices)), at, took, 0)
