"""NVML as its reference describes it (NVML API Reference, r580; nvidia-ml-py): a machine of cards that a test sets up.

What the real library enforces is enforced: nothing before `nvmlInit`, no handle beyond the count, an error of its own
class for what a card does not support, milliwatts and percent as whole numbers, a lost card that refuses its handle.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class NVMLError(Exception):
    """Any error."""


class NVMLError_NotSupported(NVMLError): ...  # noqa: N801


class NVMLError_NoPermission(NVMLError): ...  # noqa: N801


class NVMLError_NotFound(NVMLError): ...  # noqa: N801


class NVMLError_GpuIsLost(NVMLError): ...  # noqa: N801


class NVMLError_Timeout(NVMLError): ...  # noqa: N801


class NVMLError_Uninitialized(NVMLError): ...  # noqa: N801


class NVMLError_InvalidArgument(NVMLError): ...  # noqa: N801


class NVMLError_LibraryNotFound(NVMLError): ...  # noqa: N801


class Memory(NamedTuple):
    """Bytes."""

    total: int
    free: int
    used: int


class Utilization(NamedTuple):
    """Percent."""

    gpu: int
    memory: int


MOST = Memory(80 << 30, 8 << 30, 72 << 30)


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


class Event(NamedTuple):
    """What an event set gives."""

    device: Card
    eventType: int  # noqa: N815
    eventData: int  # noqa: N815


class FakeNvml:
    """The module `pynvml` of a machine with these cards."""

    NVMLError = NVMLError
    NVMLError_NotSupported = NVMLError_NotSupported
    NVMLError_NoPermission = NVMLError_NoPermission
    NVMLError_NotFound = NVMLError_NotFound
    NVMLError_GpuIsLost = NVMLError_GpuIsLost
    NVMLError_Timeout = NVMLError_Timeout
    NVML_TEMPERATURE_GPU = 0
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlEventTypeXidCriticalError = 8  # noqa: N815

    def __init__(self, *cards: Card, driver: bool = True, events: bool = True) -> None:
        self.cards = list(cards)
        self.driver = driver
        self.supports_events = events
        self.initialised = 0
        self.happened: list[Event] = []
        self._listening: set[str] = set()

    def happens(self, card: Card, xid: int) -> None:
        """An XID error; only who has registered hears of it."""
        if card.uuid in self._listening:
            self.happened.append(Event(card, self.nvmlEventTypeXidCriticalError, xid))

    # -- the library -----------------------------------------------------------------------------------------------

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise NVMLError_LibraryNotFound("NVML Shared Library Not Found")
        self.initialised += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._ready()
        self.initialised -= 1
        self._listening.clear()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._ready()
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Card:  # noqa: N802
        self._ready()
        if not 0 <= index < len(self.cards):
            raise NVMLError_InvalidArgument("Invalid Argument")
        if self.cards[index].lost:
            raise NVMLError_GpuIsLost("GPU is lost")
        return self.cards[index]

    def nvmlDeviceGetUUID(self, handle: Card) -> str:  # noqa: N802
        return self._alive(handle).uuid

    def nvmlDeviceGetName(self, handle: Card) -> bytes:  # noqa: N802
        self._alive(handle)
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUtilizationRates(self, handle: Card) -> Utilization:  # noqa: N802
        busy = self._supported(self._alive(handle).busy)
        return Utilization(busy, 10)

    def nvmlDeviceGetMemoryInfo(self, handle: Card) -> Memory:  # noqa: N802
        return self._alive(handle).memory

    def nvmlDeviceGetPowerUsage(self, handle: Card) -> int:  # noqa: N802
        return self._supported(self._alive(handle).milliwatts)

    def nvmlDeviceGetTemperature(self, handle: Card, sensor: int) -> int:  # noqa: N802
        if sensor != self.NVML_TEMPERATURE_GPU:
            raise NVMLError_InvalidArgument("Invalid Argument")
        return self._alive(handle).celsius

    def nvmlDeviceGetTotalEccErrors(self, handle: Card, kind: int, counter: int) -> int:  # noqa: N802
        if (kind, counter) != (self.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, self.NVML_VOLATILE_ECC):
            raise NVMLError_InvalidArgument("Invalid Argument")
        return self._supported(self._alive(handle).ecc)

    def nvmlDeviceGetRemappedRows(self, handle: Card) -> list[int]:  # noqa: N802
        return [0, 0, 0, self._alive(handle).remap_failure]

    def nvmlDeviceGetMigMode(self, handle: Card) -> list[int]:  # noqa: N802
        mode = int(self._supported(self._alive(handle).mig))
        return [mode, mode]

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Card) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Card, index: int) -> Card:  # noqa: N802
        if index not in handle.parts:
            raise NVMLError_NotFound("Not Found")
        return handle.parts[index]

    def nvmlDeviceGetGpuInstanceId(self, handle: Card) -> int:  # noqa: N802
        return handle.instance

    def nvmlEventSetCreate(self) -> object:  # noqa: N802
        self._ready()
        if not self.supports_events:
            raise NVMLError_NotSupported("Not Supported")
        return self

    def nvmlDeviceRegisterEvents(self, handle: Card, types: int, events: object) -> None:  # noqa: N802
        if events is not self or types != self.nvmlEventTypeXidCriticalError:
            raise NVMLError_InvalidArgument("Invalid Argument")
        self._listening.add(handle.uuid)

    def nvmlEventSetWait_v2(self, events: object, timeoutms: int) -> Event:  # noqa: N802
        if not self.happened:
            raise NVMLError_Timeout("Timeout")
        return self.happened.pop(0)

    def _ready(self) -> None:
        if not self.initialised:
            raise NVMLError_Uninitialized("Uninitialized")

    def _alive(self, handle: Card) -> Card:
        self._ready()
        if handle.lost:
            raise NVMLError_GpuIsLost("GPU is lost")
        return handle

    def _supported(self, value: Any) -> Any:
        if value is None:
            raise NVMLError_NotSupported("Not Supported")
        return value
