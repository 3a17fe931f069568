"""NVIDIA's library (`libnvidia-ml.so`) as its reference describes it (NVML API Reference, r580): a machine of cards.

It stands below the real package nvidia-ml-py, which hands it the same C values as it would hand the library itself:
what is tested above it is what the package makes of them. Enforced is what the library enforces: nothing before it is
initialised, no handle beyond the count, a status of its own for what a card does not support, milliwatts and percent as
whole numbers, a lost card that refuses its handle.
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


MOST = Memory(80 << 30, 8 << 30, 72 << 30)
MOST_PARTS = 7


@dataclass
class Card:
    """A card or, in `parts`, a MIG instance of one; what is None is not supported."""

    uuid: str
    memory: Memory = MOST
    busy: int | None = 50
    milliwatts: int | None = 300_000
    celsius: int = 60
    ecc: int | None = 0
    remap_failure: int = 0
    lost: bool = False
    mig: bool | None = False
    parts: dict[int, Card] = field(default_factory=dict)
    instance: int = 0


class Status(Exception):
    """What a function of the library returns where it is not 0."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Library:
    """The library on a machine with these cards; `missing` functions came with a later driver, `failing` ones give
    NVML_ERROR_UNKNOWN."""

    def __init__(self, *cards: Card, driver: bool = True, events: bool = True) -> None:
        self.cards = list(cards)
        self.driver = driver
        self.supports_events = events
        self.missing: set[str] = set()
        self.failing: set[str] = set()
        self.initialised = 0
        self._happened: list[tuple[Card, int]] = []
        self._listening: set[str] = set()
        self._handles: list[Card] = []

    def load(self) -> Any:
        """The package, with this library below it."""
        pynvml.nvmlLib = self
        pynvml._nvmlGetFunctionPointer_cache.clear()
        return pynvml

    def happens(self, card: Card, xid: int) -> None:
        """An XID error; only who has registered hears of it."""
        if card.uuid in self._listening:
            self._happened.append((card, xid))

    def __getattr__(self, name: str) -> Callable[..., int]:
        """A function of the library; AttributeError for one that it has not."""
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
            except Status as status:
                return status.code
            return int(pynvml.NVML_SUCCESS)

        return call

    # -- its functions -------------------------------------------------------------------------------------------

    def _nvmlInitWithFlags(self, flags: int) -> None:  # noqa: N802
        if not self.driver:
            raise Status(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
        self.initialised += 1

    def _nvmlShutdown(self) -> None:  # noqa: N802
        self.initialised -= 1
        self._listening.clear()

    def _nvmlDeviceGetCount_v2(self, count: Any) -> None:  # noqa: N802
        count._obj.value = len(self.cards)

    def _nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> None:  # noqa: N802
        if not 0 <= index.value < len(self.cards):
            raise Status(pynvml.NVML_ERROR_INVALID_ARGUMENT)
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
        told = self._card(handle).memory
        memory._obj.total, memory._obj.free, memory._obj.used = told

    def _nvmlDeviceGetPowerUsage(self, handle: Any, milliwatts: Any) -> None:  # noqa: N802
        milliwatts._obj.value = _supported(self._card(handle).milliwatts)

    def _nvmlDeviceGetTemperature(self, handle: Any, sensor: Any, celsius: Any) -> None:  # noqa: N802
        if sensor.value != pynvml.NVML_TEMPERATURE_GPU:
            raise Status(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        celsius._obj.value = self._card(handle).celsius

    def _nvmlDeviceGetTotalEccErrors(self, handle: Any, kind: Any, counter: Any, errors: Any) -> None:  # noqa: N802
        if (kind.value, counter.value) != (pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC):
            raise Status(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        errors._obj.value = _supported(self._card(handle).ecc)

    def _nvmlDeviceGetRemappedRows(self, handle: Any, *told: Any) -> None:  # noqa: N802
        told[3]._obj.value = self._card(handle).remap_failure

    def _nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> None:  # noqa: N802
        current._obj.value = pending._obj.value = int(_supported(self._card(handle).mig))

    def _nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> None:  # noqa: N802
        count._obj.value = MOST_PARTS

    def _nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, part: Any) -> None:  # noqa: N802
        parts = self._card(handle).parts
        if index.value not in parts:
            raise Status(pynvml.NVML_ERROR_NOT_FOUND)
        self._point(part._obj, parts[index.value])

    def _nvmlDeviceGetGpuInstanceId(self, handle: Any, instance: Any) -> None:  # noqa: N802
        instance._obj.value = self._card(handle).instance

    def _nvmlEventSetCreate(self, events: Any) -> None:  # noqa: N802
        if not self.supports_events:
            raise Status(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def _nvmlDeviceRegisterEvents(self, handle: Any, kinds: Any, events: Any) -> None:  # noqa: N802
        if kinds.value != pynvml.nvmlEventTypeXidCriticalError:
            raise Status(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        self._listening.add(self._card(handle).uuid)

    def _nvmlEventSetWait_v2(self, events: Any, data: Any, milliseconds: Any) -> None:  # noqa: N802
        if not self._happened:
            raise Status(pynvml.NVML_ERROR_TIMEOUT)
        card, xid = self._happened.pop(0)
        handle = pynvml.c_nvmlDevice_t()
        self._point(handle, card)
        data._obj.device = handle
        data._obj.eventType = pynvml.nvmlEventTypeXidCriticalError
        data._obj.eventData = xid

    # -- within --------------------------------------------------------------------------------------------------

    def _point(self, handle: Any, card: Card) -> None:
        """Make the handle that of the card: an address that nobody but this library reads."""
        self._handles.append(card)
        ctypes.c_void_p.from_buffer(handle).value = len(self._handles)

    def _card(self, handle: Any) -> Card:
        address = ctypes.cast(handle, ctypes.c_void_p).value
        if not address or address > len(self._handles):
            raise Status(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return _alive(self._handles[address - 1])


def _alive(card: Card) -> Card:
    if card.lost:
        raise Status(pynvml.NVML_ERROR_GPU_IS_LOST)
    return card


def _supported(value: Any) -> Any:
    if value is None:
        raise Status(pynvml.NVML_ERROR_NOT_SUPPORTED)
    return value
