"""NVIDIA's cards of this machine through NVML, for hosts without an exporter: the only importer of `pynvml`.

The package is nvidia-ml-py. Where NVML refuses a quantity of a card (not supported, no permission), it is unknown; a
lost card is unhealthy. NVML reports XID errors as events, not as a state: they are collected since the agent started,
and kept as long as the process runs, as DCGM does. A MIG instance has its own memory and no utilization. Units:
percent, bytes, milliwatts, degrees Celsius (NVML API Reference, r580).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from agent.accelerators.device import Device
from agent.accelerators.device_source import DeviceSourceFailed
from agent.accelerators.table import (
    CARD_WIDE,
    DEVICE_SIGNALS,
    ECC,
    HEALTHY,
    MEMORY_TOTAL,
    MEMORY_USED,
    POWER,
    REMAP_FAILED,
    TEMPERATURE,
    UTILIZATION,
)

INSTALL: Final = "install it with: pip install 'inference-gateway-agent[nvml]'"


def library() -> Any:
    """The module `pynvml`; DeviceSourceFailed where it is not installed."""
    try:
        import pynvml
    except ImportError as error:
        raise DeviceSourceFailed("not_installed", f"the source nvml needs nvidia-ml-py; {INSTALL}") from error
    return pynvml


class Nvml:
    """The cards of this machine; `node` is the name of the machine."""

    name = "nvml"

    def __init__(self, node: str, load: Callable[[], Any] = library) -> None:
        self._node = node
        self._load = load
        self._nvml: Any = None
        self._events: Any = None
        self._known: dict[int, tuple[str, str]] = {}  # number -> UUID and model, as last read
        self._xids: dict[str, set[int]] = {}

    def devices(self, now: float, wall: float) -> list[Device]:
        """Every card, or its instances in MIG mode. Raises DeviceSourceFailed where NVML is missing or returns an
        error."""
        nvml = self._open()
        try:
            self._collect_events()
            found: list[Device] = []
            for number in range(nvml.nvmlDeviceGetCount()):
                found += self._card(number)
            return found
        except nvml.NVMLError as error:
            self.close()  # a reloaded driver requires a new initialization
            raise DeviceSourceFailed("client_error", f"NVML: {error}") from error

    def close(self) -> None:
        """Shut NVML down."""
        nvml, self._nvml, self._events = self._nvml, None, None
        if nvml is not None:
            try:
                nvml.nvmlShutdown()
            except nvml.NVMLError:  # it is shut down already
                return

    # -- within --------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        if self._nvml is not None:
            return self._nvml
        nvml = self._load()
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise DeviceSourceFailed(
                "client_error", f"NVML: {error}; is NVIDIA's driver loaded on this machine?"
            ) from error
        self._nvml = nvml
        self._register_events()
        return nvml

    def _register_events(self) -> None:
        """Register for the XID errors of the cards that report them."""
        nvml = self._nvml
        try:
            self._events = nvml.nvmlEventSetCreate()
            for number in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, self._events)
        except nvml.NVMLError:
            self._events = None  # not supported: no error code is known, which is not a fault

    def _collect_events(self) -> None:
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
            return [self._device(uuid, uuid, number, model, {HEALTHY: 0.0})]
        values = self._values(handle)
        parts = self._parts(handle)
        if not parts:
            return [self._device(uuid, uuid, number, model, values)]
        of_card = {signal: value for signal, value in values.items() if signal in CARD_WIDE}
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
        getters: dict[str, Callable[[], float]] = {
            UTILIZATION: lambda: nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
            POWER: lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            TEMPERATURE: lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            ECC: lambda: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            REMAP_FAILED: lambda: nvml.nvmlDeviceGetRemappedRows(handle)[3],
        }
        values = self._memory(handle)
        for signal, get in getters.items():
            value = self._get(get)
            if value is not None:
                values[signal] = float(value)
        return values

    def _memory(self, handle: Any) -> dict[str, float]:
        memory = self._get(lambda: self._nvml.nvmlDeviceGetMemoryInfo(handle))
        return {} if memory is None else {MEMORY_USED: float(memory.used), MEMORY_TOTAL: float(memory.total)}

    def _get(self, get: Callable[[], Any]) -> Any:
        """The value, or None where the card or its driver does not support it, fails to read it, or has no
        permission."""
        nvml = self._nvml
        try:
            return get()
        except (
            nvml.NVMLError_NotSupported,
            nvml.NVMLError_NoPermission,
            nvml.NVMLError_FunctionNotFound,
            nvml.NVMLError_Unknown,
        ):
            return None

    def _parts(self, handle: Any) -> list[tuple[str, str, Any]]:
        """UUID, instance and handle of each MIG instance; empty for a whole card."""
        nvml = self._nvml
        mode = self._get(lambda: nvml.nvmlDeviceGetMigMode(handle)[0])
        if mode != nvml.NVML_DEVICE_MIG_ENABLE:
            return []
        found: list[tuple[str, str, Any]] = []
        for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            try:
                part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)
            except nvml.NVMLError_NotFound:
                continue
            instance = self._get(lambda part=part: nvml.nvmlDeviceGetGpuInstanceId(part))  # type: ignore[misc]
            found.append((_text(nvml.nvmlDeviceGetUUID(part)), str(place if instance is None else instance), part))
        return found


def _text(text: str | bytes) -> str:
    """Text from NVML, which some releases of the package return as bytes."""
    return text.decode("utf-8", "replace") if isinstance(text, bytes) else text
