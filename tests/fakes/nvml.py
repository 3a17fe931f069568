"""A fake of NVIDIA's library `libnvidia-ml.so`, as described in the NVML API Reference (r580), with any cards.

The real package nvidia-ml-py calls it with the same C values as the library. It enforces what the library enforces: no
call before initialisation, no handle beyond the count, a status for unsupported values, milliwatts and percent as
integers, and a lost card that refuses its handle.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pynvml


class Memory(NamedTuple):
    """Bytes."""

    total: int
    free: int
    used: int


FULL = Memory(80 << 30, 8 << 30, 72 << 30)
MAX_PARTS = 7


@dataclass
class Card:
    """A card, or a MIG instance in the `parts` of one; None is not supported."""

    uuid: str
    memory: Memory = FULL
    busy: int | None = 50
    milliwatts: int | None = 300_000
    celsius: int = 60
    ecc: int | None = 0
    remap_failure: int = 0
    lost: bool = False
    mig: bool | None = False
    parts: dict[int, Card] = field(default_factory=dict)
    instance: int = 0


class NvmlStatus(Exception):
    """The return code of a function, if not 0."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class NvmlLibrary:
    """The library on a machine with these cards.

    `missing` functions do not exist in this driver, `failing` ones return NVML_ERROR_UNKNOWN.
    """

    def __init__(self, *cards: Card, driver: bool = True, events: bool = True) -> None:
        self.cards = list(cards)
        self.driver = driver
        self.supports_events = events
        self.missing: set[str] = set()
        self.failing: set[str] = set()
        self.initialised = 0
        self._pending: list[tuple[Card, int]] = []
        self._registered: set[str] = set()
        self._handles: list[Card] = []

    def load(self) -> Any:
        """The package pynvml with this library."""
        pynvml.nvmlLib = self
        pynvml._nvmlGetFunctionPointer_cache.clear()
        return pynvml

    def xid_error(self, card: Card, xid: int) -> None:
        """An XID error of a card; delivered only if its events are registered."""
        if card.uuid in self._registered:
            self._pending.append((card, xid))

    def __getattr__(self, name: str) -> Callable[..., int]:
        """A function of the library; AttributeError for a missing one."""
        do = getattr(type(self), f"_{name}", None)
        if do is None or name in self.missing:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name != "nvmlInitWithFlags" and not self.initialised:
                return int(pynvml.NVML_ERROR_UNINITIALIZED)
            if name in self.failing:
                return int(pynvml.NVML_ERROR_UNKNOWN)
            try:
                do(self, *arguments)
            except NvmlStatus as status:
                return status.code
            return int(pynvml.NVML_SUCCESS)

        return call

    # -- its functions -------------------------------------------------------------------------------------------

    def _nvmlInitWithFlags(self, flags: int) -> None:  # noqa: N802
        if not self.driver:
            raise NvmlStatus(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.initialised += 1

    def _nvmlShutdown(self) -> None:  # noqa: N802
        self.initialised -= 1
        self._registered.clear()

    def _nvmlDeviceGetCount_v2(self, count: Any) -> None:  # noqa: N802
        count._obj.value = len(self.cards)

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> None:  # noqa: N802
        if not 0 <= index.value < len(self.cards):
            raise NvmlStatus(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self._point(handle._obj, _alive(self.cards[index.value]))

    def _nvmlDeviceGetUUID(self, handle: Any, text: Any, size: Any) -> None:  # noqa: N802
        text.value = self._card(handle).uuid.encode()

    def _nvmlDeviceGetName(self, handle: Any, text: Any, size: Any) -> None:  # noqa: N802
        self._card(handle)
        text.value = b"NVIDIA H100 80GB HBM3"

    def _nvmlDeviceGetUtilizationRates(self, handle: Any, rates: Any) -> None:  # noqa: N802
        rates._obj.gpu = _supported(self._card(handle).busy)
        rates._obj.memory = 10

    def _nvmlDeviceGetMemoryInfo(self, handle: Any, memory: Any) -> None:  # noqa: N802
        memory._obj.total, memory._obj.free, memory._obj.used = self._card(handle).memory

    def _nvmlDeviceGetPowerUsage(self, handle: Any, milliwatts: Any) -> None:  # noqa: N802
        milliwatts._obj.value = _supported(self._card(handle).milliwatts)

    def _nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, celsius: Any) -> None:  # noqa: N802
        if sensor.value != pynvml.NVML_TEMPERATURE_GPU:
            raise NvmlStatus(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        celsius._obj.value = self._card(handle).celsius

    def _nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: Any, counter: Any, errors: Any) -> None:  # noqa: N802
        if (kind.value, counter.value) != (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC):
            raise NvmlStatus(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        errors._obj.value = _supported(self._card(handle).ecc)

    def _nvmlDeviceGetRemappedRows(self, handle: Any, *counts: Any) -> None:  # noqa: N802
        counts[3]._obj.value = self._card(handle).remap_failure

    def _nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> None:  # noqa: N802
        current._obj.value = pending._obj.value = int(_supported(self._card(handle).mig))

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> None:  # noqa: N802
        count._obj.value = MAX_PARTS

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, part: Any) -> None:  # noqa: N802
        parts = self._card(handle).parts
        if index.value not in parts:
            raise NvmlStatus(pynvml.NVML_ERROR_NOT_FOUND)
        self._point(part._obj, parts[index.value])

    def _nvmlDeviceGetGpuInstanceId(self, handle: Any, instance: Any) -> None:  # noqa: N802
        instance._obj.value = self._card(handle).instance

    def _nvmlEventSetCreate(self, events: Any) -> None:  # noqa: N802
        if not self.supports_events:
            raise NvmlStatus(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def _nvmlDeviceRegisterEvents(self, handle: Any, kinds: Any, events: Any) -> None:  # noqa: N802
        if kinds.value != pynvml.nvmlEventTypeXidCriticalError:
            raise NvmlStatus(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self._registered.add(self._card(handle).uuid)

    def _nvmlEventSetWait_v2(self, events: Any, data: Any, milliseconds: Any) -> None:  # noqa: N802
        if not self._pending:
            raise NvmlStatus(pynvml.NVML_ERROR_TIMEOUT)
        card, xid = self._pending.pop(0)
        handle = pynvml.c_nvmlDevice_t()
        self._point(handle, card)
        data._obj.device = handle
        data._obj.eventType = pynvml.nvmlEventTypeXidCriticalError
        data._obj.eventData = xid

    # -- within --------------------------------------------------------------------------------------------------

    def _point(self, handle: Any, card: Card) -> None:
        """Set the handle to the card's number, which only this library reads."""
        self._handles.append(card)
        ctypes.c_void_p.from_buffer(handle).value = len(self._handles)

    def _card(self, handle: Any) -> Card:
        address = ctypes.cast(handle, ctypes.c_void_p).value
        if not address or address > len(self._handles):
            raise NvmlStatus(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return _alive(self._handles[address - 1])


def _alive(card: Card) -> Card:
    if card.lost:
        raise NvmlStatus(pynvml.NVML_ERROR_GPU_IS_LOST)
    return card


def _supported(value: Any) -> Any:
    if value is None:
        raise NvmlStatus(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value
