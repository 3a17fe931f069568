"""The `/metrics` page of an emulated server: the families of `agent.emulator.families`, rendered cheaply.

All text but the numbers is put together once. A page then costs one pass over the engine's counters and one
formatting call, a fraction of a millisecond, so that a fleet of emulators can be scraped often.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from agent.emulator.engine import Engine
from agent.emulator.families import FAMILIES, Family, Labels, cache_config
from agent.emulator.settings import Settings
from agent.emulator.tally import Histogram


class Process(NamedTuple):
    """What the page says of the server's process; the shell measures it. `gc` has one triple for each generation."""

    virtual_bytes: float = 0.0
    resident_bytes: float = 0.0
    cpu_seconds: float = 0.0
    open_fds: int = 0
    max_fds: int = 0
    gc: tuple[tuple[int, int, int], ...] = ((0, 0, 0),) * 3  # collected, uncollectable, collections
    python: tuple[str, str, str] = ("3", "11", "7")


def number(value: float) -> str:
    """A sample value as Prometheus clients write it: `4.0`, and from a million on `1.795344279e+09`."""
    text = repr(float(value))
    dot = text.find(".")
    if value > 0 and dot > 6 and "e" not in text:
        mantissa = f"{text[0]}.{text[1:dot]}{text[dot + 1 :]}".rstrip("0.")
        return f"{mantissa}e+{dot - 1:02d}"
    return {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}.get(text, text)


def _labelled(name: str, labels: Iterable[tuple[str, str]]) -> str:
    escaped = (
        (key, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for key, value in sorted(labels)
    )
    text = ",".join(f'{key}="{value}"' for key, value in escaped)
    return f"{name}{{{text}}}" if text else name


def _head(name: str, kind: str, help: str) -> str:
    return f"# HELP {name} {help}\n# TYPE {name} {kind}\n"


def _bounds(histogram: Histogram) -> Iterable[str]:
    yield from (number(bound) for bound in histogram.bounds)
    yield "+Inf"


def _histogram_lines(name: str, labels: Labels, histogram: Histogram) -> list[str]:
    lines = [_labelled(f"{name}_bucket", (*labels, ("le", bound))) for bound in _bounds(histogram)]
    return [*lines, _labelled(f"{name}_count", labels), _labelled(f"{name}_sum", labels)]


def _histogram_values(histogram: Histogram) -> list[str]:
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
    ("process_start_time_seconds", "gauge", "When the process started, seconds since 1970."),
    ("process_cpu_seconds_total", "counter", "CPU time that the process used."),
    ("process_open_fds", "gauge", "Open file descriptors."),
    ("process_max_fds", "gauge", "Most file descriptors that may be open."),
)


class HttpCounts:
    """What the server's HTTP side counts, by handler; handlers appear when they are first used, as in the recording."""

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str, str], list[float]] = {}  # count, created
        self.sizes: dict[str, list[float]] = {}  # count, request bytes, response bytes, created
        self.durations: dict[tuple[str, str], tuple[Histogram, float]] = {}
        self.fine: Histogram = Histogram(
            (
                *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
                *(7.5, 10.0, 30.0, 60.0),
            )
        )

    def add(self, handler: str, method: str, status: int, received: int, sent: int, seconds: float, at: float) -> None:
        """Count one answer at time `at`; `sent` is 0 for a stream, whose length is not known beforehand."""
        self.requests.setdefault((handler, method, f"{status // 100}xx"), [0.0, at])[0] += 1
        size = self.sizes.setdefault(handler, [0.0, 0.0, 0.0, at])
        size[0] += 1
        size[1] += received
        size[2] += sent
        self.durations.setdefault((handler, method), (Histogram((0.1, 0.5, 1.0)), at))[0].add(seconds)
        self.fine.add(seconds)


class PageWriter:
    """Writes the pages of one server. `wall` is the time since 1970 at the engine's time `now`: only labels and
    `_created` values need it, so that the page of a simulated time is a function of that time alone."""

    def __init__(
        self, settings: Settings, model_name: str, *, now: float = 0.0, wall: float = 0.0, engine: str = "0"
    ) -> None:
        self._offset = wall - now
        self._started = number(wall)
        self._labels: Labels = (("engine", engine), ("model_name", model_name))
        self._max_loras = settings.max_loras
        self._families = [f for f in FAMILIES if settings.kv_cache_metrics or not f.only_with_kv_cache_metrics]
        probe = Engine(settings)
        text = "".join(self._family_text(family, probe) for family in self._families)
        self._template = text
        self._cache_config = (
            _head("vllm:cache_config_info", "gauge", "How the KV cache is set up.")
            + _labelled("vllm:cache_config_info", cache_config(settings, engine))
            + " 1.0\n"
        )
        self._fine_created = self._started

    def _family_text(self, family: Family, engine: Engine) -> str:
        """A family with `%s` for each number; percent signs in names are doubled."""
        labels = self._labels if family.engine_label else self._labels[1:]
        name = f"vllm:{family.name}"
        lines: list[str] = []
        created: list[str] = []
        stem = name.removesuffix("_total") if family.kind == "counter" else name
        if family.histogram is not None:
            lines = _histogram_lines(name, labels, family.histogram(engine))
            created = [_labelled(f"{name}_created", labels)]
        else:
            for sample in family.samples:
                lines.append(_labelled(name, (*labels, *sample.labels)))
                created.append(_labelled(f"{stem}_created", (*labels, *sample.labels)))
        text = _head(name, family.kind, family.help) + "".join(f"{line}\0\n" for line in lines)
        if family.kind != "gauge":
            text += _head(f"{stem}_created", "gauge", family.help)
            text += "".join(f"{line} {self._started}\n" for line in created)
        return text.replace("%", "%%").replace("\0", " %s")

    def page(self, engine: Engine, now: float, process: Process | None = None, http: HttpCounts | None = None) -> bytes:
        """The page at `now`, to which the engine is brought first; its events stay for its next `advance`."""
        engine.settle(now)
        values: list[str] = []
        for family in self._families:
            if family.histogram is not None:
                values += _histogram_values(family.histogram(engine))
            else:
                values += [number(sample.value(engine)) for sample in family.samples]
        parts = [self._process(process or Process()), self._template % tuple(values)]
        if self._max_loras:
            parts.append(self._lora(engine))
        parts.append(self._cache_config)
        parts.append(self._http(http or HttpCounts()))
        return "".join(parts).encode()

    def _process(self, process: Process) -> str:
        parts = []
        for place, (name, meaning) in enumerate(
            (
                ("python_gc_objects_collected_total", "Objects collected."),
                ("python_gc_objects_uncollectable_total", "Objects that could not be collected."),
                ("python_gc_collections_total", "Collections of this generation."),
            )
        ):
            parts.append(_head(name, "counter", meaning))
            parts += [
                f'{name}{{generation="{generation}"}} {number(counts[place])}\n'
                for generation, counts in enumerate(process.gc)
            ]
        major, minor, patch = process.python
        parts.append(_head("python_info", "gauge", "The Python that runs the server."))
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

    def _lora(self, engine: Engine) -> str:
        """Every batch of adapters that ever was, with the time of its last step: the newest is the present one."""
        name = "vllm:lora_requests_info"
        seen = dict(engine.slots.seen)
        if engine.running:
            seen[engine.slots.text] = max(engine.last_step_at(), seen.get(engine.slots.text, 0.0))
        lines = []
        for text, at in seen.items():
            # The waiting adapters are a copy of the running ones: so it is in the recorded version.
            labels = (
                ("max_lora", str(self._max_loras)),
                ("running_lora_adapters", text),
                ("waiting_lora_adapters", text),
            )
            lines.append(f"{_labelled(name, labels)} {number(at + self._offset)}\n")
        return _head(name, "gauge", "Adapters in use; the value is the time of their last step.") + "".join(lines)

    def _http(self, http: HttpCounts) -> str:
        wall = self._offset
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
            "Requests answered.",
            [f"{_labelled('http_requests_total', key)} {number(count)}" for key, (count, _) in counted],
            [f"{_labelled('http_requests_created', key)} {number(at + wall)}" for key, (_, at) in counted],
        )
        for place, name in ((1, "http_request_size_bytes"), (2, "http_response_size_bytes")):
            lines, created = [], []
            for handler, size in http.sizes.items():
                label = (("handler", handler),)
                lines.append(f"{_labelled(f'{name}_count', label)} {number(size[0])}")
                lines.append(f"{_labelled(f'{name}_sum', label)} {number(size[place])}")
                created.append(f"{_labelled(f'{name}_created', label)} {number(size[3] + wall)}")
            family(name, "summary", "Bytes, as far as the length was declared.", lines, created)
        name = "http_request_duration_highr_seconds"
        values = _histogram_values(http.fine)
        lines = [f"{line} {v}" for line, v in zip(_histogram_lines(name, (), http.fine), values, strict=True)]
        family(name, "histogram", "Seconds to answer, many buckets.", lines, [f"{name}_created {self._fine_created}"])
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
            created.append(f"{_labelled(f'{name}_created', labels)} {number(at + wall)}")
        family(name, "histogram", "Seconds to answer, by handler.", lines, created)
        return "".join(parts)
