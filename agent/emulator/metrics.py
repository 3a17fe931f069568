"""The `/metrics` page of an emulated server: the families of `agent.emulator.families` as text.

All text but the numbers is built once. A page then costs one pass over the engine's counters and one formatting call,
a fraction of a millisecond, so that a fleet of emulated servers can be scraped often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from agent.emulator.config import EmulatorConfig
from agent.emulator.counters import BucketCounter
from agent.emulator.engine import EngineSimulation
from agent.emulator.families import FAMILIES, Labels, MetricFamily, cache_config


class ProcessStats(NamedTuple):
    """Statistics of the server's process for the page. `gc` has one triple for each generation."""

    virtual_bytes: float = 0.0
    resident_bytes: float = 0.0
    cpu_seconds: float = 0.0
    open_fds: int = 0
    max_fds: int = 0
    gc: tuple[tuple[int, int, int], ...] = ((0, 0, 0),) * 3  # collected, uncollectable, collections
    python: tuple[str, str, str] = ("3", "11", "7")


def number(value: float) -> str:
    """A sample value as Prometheus clients write it: `4.0`, and from one million `1.795344279e+09`."""
    text = repr(float(value))
    dot = text.find(".")
    if value > 0 and dot > 6 and "e" not in text:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)


def _series(name: str, labels: Iterable[tuple[str, str]]) -> str:
    escaped = (
        (key, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for key, value in sorted(labels)
    )
    text = ",".join(f'{key}="{value}"' for key, value in escaped)
    return f"{name}{{{text}}}" if text else name


def _head(name: str, kind: str, help: str) -> str:
    return f"# HELP {name} {help}\n# TYPE {name} {kind}\n"


def _bounds(histogram: BucketCounter) -> Iterable[str]:
    yield from (number(bound) for bound in histogram.bounds)
    yield "+Inf"


def _histogram_lines(name: str, labels: Labels, histogram: BucketCounter) -> list[str]:
    lines = [_series(f"{name}_bucket", (*labels, ("le", bound))) for bound in _bounds(histogram)]
    return [*lines, _series(f"{name}_count", labels), _series(f"{name}_sum", labels)]


def _histogram_values(histogram: BucketCounter) -> list[str]:
    values, total, text = [], 0, "0.0"
    for count in histogram.counts:
        if count:
            total += count
            text = number(total)
        values.append(text)
    return [*values, values[-1], number(histogram.sum)]


_PROCESS: Final = (
    ("process_virtual_memory_bytes", "gauge", "Virtual memory of the process."),
    ("process_resident_memory_bytes", "gauge", "Resident memory of the process."),
    ("process_start_time_seconds", "gauge", "Start time of the process, seconds since 1970."),
    ("process_cpu_seconds_total", "counter", "CPU time used by the process."),
    ("process_open_fds", "gauge", "Open file descriptors."),
    ("process_max_fds", "gauge", "Maximum number of open file descriptors."),
)


class HttpCounters:
    """The HTTP counters by handler; as in the recording, a handler appears with its first request."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str], list[float]] = {}  # count, created
        self.sizes: dict[str, list[float]] = {}  # count, request bytes, response bytes, created
        self.durations: dict[tuple[str, str], tuple[BucketCounter, float]] = {}
        self.fine: BucketCounter = BucketCounter(
            (
                *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
                *(7.5, 10.0, 30.0, 60.0),
            )
        )

    def add(self, handler: str, method: str, status: int, received: int, sent: int, seconds: float, at: float) -> None:
        """Count one response at time `at`; `sent` is 0 for a stream, whose length is not declared."""
        self.requests.setdefault((handler, method, f"{status // 100}xx"), [0.0, at])[0] += 1
        size = self.sizes.setdefault(handler, [0.0, 0.0, 0.0, at])
        size[0] += 1
        size[1] += received
        size[2] += sent
        self.durations.setdefault((handler, method), (BucketCounter((0.1, 0.5, 1.0)), at))[0].add(seconds)
        self.fine.add(seconds)


class PageWriter:
    """Writes the pages of one server. `wall` is the Unix time at the engine's time `now`.

    Only label values and `_created` values depend on it, so the page of a simulated time depends on that time alone.
    """

    def __init__(
        self, config: EmulatorConfig, model_name: str, *, now: float = 0.0, wall: float = 0.0, engine: str = "0"
    ) -> None:
        self._offset = wall - now
        self._started = number(wall)
        self._labels: Labels = (("engine", engine), ("model_name", model_name))
        self._max_loras = config.max_loras
        self._log_stats = not config.disable_log_stats
        self._families = [f for f in FAMILIES if config.kv_cache_metrics or not f.only_with_kv_cache_metrics]
        unused = EngineSimulation(config)
        text = "".join(self._family_text(family, unused) for family in self._families)
        self._template = text
        self._cache_config = (
            _head("vllm:cache_config_info", "gauge", "Configuration of the KV cache.")
            + _series("vllm:cache_config_info", cache_config(config, engine))
            + " 1.0\n"
        )
        self._fine_created = self._started

    def _family_text(self, family: MetricFamily, engine: EngineSimulation) -> str:
        """The text of a family with `%s` for each number; percent signs in names are doubled."""
        labels = self._labels if family.engine_label else self._labels[1:]
        name = f"vllm:{family.name}"
        lines: list[str] = []
        created: list[str] = []
        stem = name.removesuffix("_total") if family.kind == "counter" else name
        if family.histogram is not None:
            lines = _histogram_lines(name, labels, family.histogram(engine))
            created = [_series(f"{name}_created", labels)]
        else:
            for sample in family.samples:
                lines.append(_series(name, (*labels, *sample.labels)))
                created.append(_series(f"{stem}_created", (*labels, *sample.labels)))
        text = _head(name, family.kind, family.help) + "".join(f"{line}\0\n" for line in lines)
        if family.kind != "gauge":
            text += _head(f"{stem}_created", "gauge", family.help)
            text += "".join(f"{line} {self._started}\n" for line in created)
        return text.replace("%", "%%").replace("\0", " %s")

    def page(
        self,
        engine: EngineSimulation,
        now: float,
        process: ProcessStats | None = None,
        http: HttpCounters | None = None,
    ) -> bytes:
        """The page at `now`. The engine is settled at `now`; its events stay for its next `advance`."""
        engine.settle(now)
        if not self._log_stats:
            return (self._process(process or ProcessStats()) + self._http(http or HttpCounters())).encode()
        values: list[str] = []
        for family in self._families:
            if family.histogram is not None:
                values += _histogram_values(family.histogram(engine))
            else:
                values += [number(sample.value(engine)) for sample in family.samples]
        parts = [self._process(process or ProcessStats()), self._template % tuple(values)]
        if self._max_loras:
            parts.append(self._lora(engine))
        parts.append(self._cache_config)
        parts.append(self._http(http or HttpCounters()))
        return "".join(parts).encode()

    def _process(self, process: ProcessStats) -> str:
        parts = []
        for index, (name, help_text) in enumerate(
            (
                ("python_gc_objects_collected_total", "Objects collected."),
                ("python_gc_objects_uncollectable_total", "Objects that could not be collected."),
                ("python_gc_collections_total", "Collections of this generation."),
            )
        ):
            parts.append(_head(name, "counter", help_text))
            parts += [
                f'{name}{{generation="{generation}"}} {number(counts[index])}\n'
                for generation, counts in enumerate(process.gc)
            ]
        major, minor, patch = process.python
        parts.append(_head("python_info", "gauge", "The Python version of the server."))
        parts.append(
            f'python_info{{implementation="CPython",major="{major}",minor="{minor}",patchlevel="{patch}",'
            f'version="{major}.{minor}.{patch}"}} 1.0\n'
        )
        values = (
            number(process.virtual_bytes),
            number(process.resident_bytes),
            self._started,
            number(process.cpu_seconds),
            number(process.open_fds),
            number(process.max_fds),
        )
        parts += [_head(*row) + f"{row[0]} {value}\n" for row, value in zip(_PROCESS, values, strict=True)]
        return "".join(parts)

    def _lora(self, engine: EngineSimulation) -> str:
        """Every set of active adapters so far, with the time of its last step; the newest is the current one."""
        name = "vllm:lora_requests_info"
        last_step = dict(engine.adapters.last_step)
        if engine.running:
            last_step[engine.adapters.active] = max(engine.last_step_at(), last_step.get(engine.adapters.active, 0.0))
        lines = []
        for text, at in last_step.items():
            # The recorded version copies the running adapters to the label of the waiting ones.
            labels = (
                ("max_lora", str(self._max_loras)),
                ("running_lora_adapters", text),
                ("waiting_lora_adapters", text),
            )
            lines.append(f"{_series(name, labels)} {number(at + self._offset)}\n")
        return _head(name, "gauge", "Active adapters; the value is the time of their last step.") + "".join(lines)

    def _http(self, http: HttpCounters) -> str:
        offset = self._offset
        parts: list[str] = []

        def family(name: str, kind: str, help: str, lines: Sequence[str], created: Sequence[str]) -> None:
            parts.append(_head(name, kind, help))
            parts.extend(f"{line}\n" for line in lines)
            if created:
                stem = name.removesuffix("_total")
                parts.append(_head(f"{stem}_created", "gauge", help))
                parts.extend(f"{line}\n" for line in created)

        keys = [(("handler", h), ("method", m), ("status", s)) for h, m, s in http.requests]
        counted = list(zip(keys, http.requests.values(), strict=True))
        family(
            "http_requests_total",
            "counter",
            "Responses sent.",
            [f"{_series('http_requests_total', key)} {number(count)}" for key, (count, _) in counted],
            [f"{_series('http_requests_created', key)} {number(at + offset)}" for key, (_, at) in counted],
        )
        for index, name in ((1, "http_request_size_bytes"), (2, "http_response_size_bytes")):
            lines, created = [], []
            for handler, size in http.sizes.items():
                label = (("handler", handler),)
                lines.append(f"{_series(f'{name}_count', label)} {number(size[0])}")
                lines.append(f"{_series(f'{name}_sum', label)} {number(size[index])}")
                created.append(f"{_series(f'{name}_created', label)} {number(size[3] + offset)}")
            family(name, "summary", "Bytes of bodies with a declared length.", lines, created)
        name = "http_request_duration_highr_seconds"
        values = _histogram_values(http.fine)
        lines = [f"{line} {v}" for line, v in zip(_histogram_lines(name, (), http.fine), values, strict=True)]
        family(
            name,
            "histogram",
            "Seconds per request, with many buckets.",
            lines,
            [f"{name}_created {self._fine_created}"],
        )
        name = "http_request_duration_seconds"
        lines, created = [], []
        for (handler, method), (histogram, at) in http.durations.items():
            labels = (("handler", handler), ("method", method))
            lines += [
                f"{line} {value}"
                for line, value in zip(
                    _histogram_lines(name, labels, histogram), _histogram_values(histogram), strict=True
                )
            ]
            created.append(f"{_series(f'{name}_created', labels)} {number(at + offset)}")
        family(name, "histogram", "Seconds per request by handler.", lines, created)
        return "".join(parts)
