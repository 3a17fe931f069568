"""NVIDIA's cards of this machine through NVML, for hosts without an exporter: the only importer of `pynvml`.

The package is nvidia-ml-py. A quantity that a card does not have is refused by NVML (not supported, no permission) and
then unknown; a card that is lost is unwell. NVML tells XID errors as events and not as a state: they are gathered from
the moment at which the agent began to listen, and stay as long as the process lives, as DCGM's do. A MIG instance has
memory of its own and no utilization. Units: percent, bytes, milliwatts, degrees Celsius (NVML API Reference, r580).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agent.accelerators.device import Device
from agent.accelerators.probe import ProbeFailed
from agent.accelerators.table import (
    DEVICE_SIGNALS,
    ECC,
    MEMORY_TOTAL,
    MEMORY_USED,
    OF_THE_CARD,
    POWER,
    REMAP_FAILED,
    TEMPERATURE,
    UTILIZATION,
    WELL,
)

INSTALL: Final = "install it with: pip install 'inference-gateway-agent[nvml]'"


def library() -> Any:
    """The module `pynvml`; ProbeFailed where it is not installed."""
    try:
        import pynvml
    except ImportError as error:
        raise ProbeFailed("not_installed", f"the source nvml needs nvidia-ml-py; {INSTALL}") from error
    return pynvml


class Nvml:
    """The cards of this machine; `node` is what their machine is called."""

    name = "nvml"

    def __init__(self, node: str, load: Callable[[], Any] = library) -> None:
        self._node = node
        self._load = load
        self._nvml: Any = None
        self._events: Any = None
        self._known: dict[int, tuple[str, str]] = {}  # number -> UUID and model, as long as it could be asked
        self._xids: dict[str, set[int]] = {}

    def devices(self, now: float, wall: float) -> list[Device]:
        """Every card, or its instances where it is in MIG mode. ProbeFailed where NVML is not there, or refuses."""
        nvml = self._open()
        try:
            self._gather_events()
            found: list[Device] = []
            for number in range(nvml.nvmlDeviceGetCount()):
                found += self._card(number)
            return found
        except nvml.NVMLError as error:
            self.close()  # a driver that was reloaded wants a new beginning
            raise ProbeFailed("client_error", f"NVML: {error}") from error

    def close(self) -> None:
        """Let go of NVML."""
        nvml, self._nvml, self._events = self._nvml, None, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:  # what is to be let go of is gone already
                return

    # -- within --------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._nvml is not None:
            return self._nvml
        nvml = self._load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise ProbeFailed("client_error", f"NVML: {error}; is NVIDIA's driver loaded on this machine?") from error
        self._nvml = nvml
        self._listen()
        return nvml

    def _listen(self) -> None:
        """Ask to be told of XID errors, by the cards that can tell."""
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
            for number in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
        except nvml.NVMLError:
            self._events = None  # not supported: then no error code is known, which is no fault

    def _gather_events(self) -> None:
        nvml = self._nvml
        while self._events is not None:
            try:
                event = nvml.nvmlEventSetWait_v2(self._events, 0)
                self._xids.setdefault(_text(nvml.nvmlDeviceGetUUID(event.device)), set()).add(int(event.eventData))
            except nvml.NVMLError_Timeout:
                return

    def _card(self, number: int) -> list[Device]:
        nvml = self._nvml
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            uuid, model = _text(nvml.nvmlDeviceGetUUID(handle)), _text(nvml.nvmlDeviceGetName(handle))
            self._known[number] = uuid, model
        except nvml.NVMLError_GpuIsLost:
            uuid, model = self._known.get(number, (f"number {number}", ""))
            return [self._device(uuid, uuid, number, model, {WELL: 0.0})]
        values = self._values(handle)
        parts = self._parts(handle)
        if not parts:
            return [self._device(uuid, uuid, number, model, values)]
        of_card = {signal: value for signal, value in values.items() if signal in OF_THE_CARD}
        return [
            self._device(name, uuid, number, model, {**of_card, **self._memory(part)}, part=instance)
            for name, instance, part in parts
        ]

    def _device(self, id: str, card: str, number: int, model: str, values: dict[str, float], part: str = "") -> Device:
        bounds = DEVICE_SIGNALS
        good = {name: value for name, value in values.items() if bounds[name].low <= value <= bounds[name].high}
        xids = tuple(sorted(self._xids.get(card, ())))
        return Device(id, card, good, number=str(number), part=part, model=model, node=self._node, xids=xids)

    def _values(self, handle: Any) -> dict[str, float]:
        nvml = self._nvml
        asked: dict[str, Callable[[], float]] = {
            UTILIZATION: lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            POWER: lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            TEMPERATURE: lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            ECC: lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            REMAP_FAILED: lambda: nvml.nvmlDeviceGetRemappedRows(handle)[3],
        }
        values = self._memory(handle)
        for signal, ask in asked.items():
            value = self._ask(ask)
            if value is not None:
                values[signal] = float(value)
        return values

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self._ask(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle))
        return {} if memory is None else {MEMORY_USED: float(memory.used), MEMORY_TOTAL: float(memory.total)}

    def _ask(self, ask: Callable[[], Any]) -> Any:
        """What NVML says, or None where this card does not have it, fails at it, or may not be asked, or where the
        driver is older than the question."""
        nvml = self._nvml
        try:
            return ask()
        except (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_NoPermission,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_Unknown,
        ):
            return None

    def _parts(self, handle: Any) -> list[tuple[str, str, Any]]:
        """UUID, instance and handle of each MIG instance; none where the card is whole."""
        nvml = self._nvml
        mode = self._ask(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
        if mode != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        found: list[tuple[str, str, Any]] = []
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except nvml.NVMLError_NotFound:
                continue
            instance = self._ask(lambda part=part: nvml.nvmlDeviceGetGpuInstanceId(part))  # type: ignore[misc]
            found.append((_text(nvml.nvmlDeviceGetUUID(part)), str(place if instance is None else instance), part))
        return found


def _text(told: str | bytes) -> str:
    """Text of NVML, which some releases of the package give as bytes."""
    return told.decode("utf-8", "replace") if isinstance(told, bytes) else told
