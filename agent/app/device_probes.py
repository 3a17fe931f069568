"""Asking the sources that are no page: each from time to time in a thread, never twice at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

from agent.accelerators.device import Device, Devices
from agent.accelerators.probe import Probe, ProbeFailed
from agent.clock import Clock
from agent.state.devices import DeviceState, ExporterKey


class Asked(NamedTuple):
    """A probe, how often it is asked, and how long an answer may take (seconds)."""

    probe: Probe
    interval: float
    timeout: float


class Probes:
    """Asks probes and tells the state. All methods are called on the event loop."""

    def __init__(self, state: DeviceState, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._tasks: dict[ExporterKey, asyncio.Task[None]] = {}

    def set_probes(self, wanted: Mapping[ExporterKey, Asked]) -> None:
        """The probes from now on; all of them begin anew."""
        for task in self._tasks.values():
            task.cancel()
        loop = asyncio.get_running_loop()
        self._tasks = {key: loop.create_task(self._ask(key, asked)) for key, asked in wanted.items()}

    async def stop(self) -> None:
        """Ask nothing more."""
        tasks = list(self._tasks.values())
        self.set_probes({})
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, key: ExporterKey, asked: Asked) -> None:
        clock = self._clock
        try:
            while True:
                at = clock.now()
                answer = asyncio.ensure_future(asyncio.to_thread(asked.probe.devices, at, clock.wall()))
                done, _ = await asyncio.wait({answer}, timeout=asked.timeout)
                if not done:
                    self._state.failed(key, "timeout", f"no answer within {asked.timeout:g} s", at, clock.now() - at)
                    await asyncio.wait({answer})  # a thread cannot be broken off: ask again when it is through
                self._tell(key, answer, at, whether_late=not done)
                await asyncio.sleep(max(0.0, at + asked.interval - clock.now()))
        finally:
            asked.probe.close()

    def _tell(self, key: ExporterKey, answer: asyncio.Future[list[Device]], at: float, *, whether_late: bool) -> None:
        took = self._clock.now() - at
        try:
            devices = answer.result()
        except ProbeFailed as failed:
            if not whether_late:
                self._state.failed(key, failed.reason, failed.detail, at, took)
        except Exception as error:  # noqa: BLE001 - somebody else's library; what it raises once, it may not raise again
            self._state.failed(key, "client_error", f"{type(error).__name__}: {error}", at, took)
        else:
            self._state.observed(key, Devices(tuple(devices)), at, took, 0)
