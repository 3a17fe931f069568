"""The series of requests by model, caller and priority: their number is bounded, whatever clients and servers send.

A request is counted under one set of labels from its pick to its end, even where the label of one of its names changes
meanwhile: a gauge of running requests would drift otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from prometheus_client import Counter, Gauge

from agent.events.exchange import NO_SLO, Exchange, Slo
from agent.flow.flow_names import DEFAULT_FLOW
from agent.instruments.caller_labels import CallerLabels
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.histogram import Buckets
from agent.instruments.known_names import KnownNames
from agent.instruments.label_limiter import OTHER, LabelLimiter
from agent.requests.attainment import MET, MISSED, NOT_MEASURED, attainment, refusal
from agent.requests.response import OK
from exporters.catalog import exchanges
from exporters.catalog import requests as rows

# Distinct names that servers list; the reference's limit. Those that the configuration declares come on top.
MODEL_NAMES: Final = 1000
# Names in pools whose servers list no models, such as Triton's: the agent cannot tell a model from a wrong name there.
UNPINNED_MODEL_NAMES: Final = 20
# Pairs of a requested and another served model, where both have labels of their own.
REWRITTEN_PAIRS: Final = 200
# Combinations of models with another caller and priority than the default ones. What comes after is counted by its
# caller and priority alone where the caller is declared, else by its models alone, with `other` for the rest.
COMBINATIONS: Final = 300
_DEFAULT: Final = (DEFAULT_FLOW, "0")
# Statuses with a label of their own: a server may send any number. 529 is Anthropic's and others' for an overload.
CODES: Final = frozenset({0, 529, *HTTPStatus})


class RequestNames(NamedTuple):
    """What a request is counted by: the model that the client named, the one that serves it, the caller (empty:
    unnamed) and the priority."""

    model: str
    target: str
    caller: str = ""
    priority: int = 0


Labels = tuple[str, str, str, str]  # model_name, target_model_name, fairness_id, priority


class _Exchanges:
    """The children of one set of labels for what the proxy measures."""

    __slots__ = (
        "cached", "duration_per_token", "input", "output", "request_bytes", "response_bytes", "results",
        "slos", "time_per_token", "ttft_streamed", "ttft_whole", "without_usage",
    )  # fmt: skip

    def __init__(self, metrics: EventMetrics, labels: Labels) -> None:
        self.request_bytes: Buckets = metrics.child(exchanges.REQUEST_BYTES, *labels)
        self.response_bytes: Buckets = metrics.child(exchanges.RESPONSE_BYTES, *labels)
        self.input: Buckets = metrics.child(exchanges.INPUT_TOKENS, *labels)
        self.output: Buckets = metrics.child(exchanges.OUTPUT_TOKENS, *labels)
        self.cached: Buckets = metrics.child(exchanges.CACHED_TOKENS, *labels)
        self.ttft_streamed: Buckets = metrics.child(exchanges.TTFT, *labels, "true")
        self.ttft_whole: Buckets = metrics.child(exchanges.TTFT, *labels, "false")
        self.time_per_token: Buckets = metrics.child(exchanges.TIME_PER_TOKEN, *labels)
        self.duration_per_token: Buckets = metrics.child(exchanges.DURATION_PER_TOKEN, *labels)
        self.without_usage: Counter = metrics.child(exchanges.WITHOUT_USAGE, *labels)
        self.results: dict[tuple[str, str], Counter] = {}
        self.slos: dict[tuple[str, str], Counter] = {}  # objective and result


_ONE_EACH: Final = (
    exchanges.REQUEST_BYTES,
    exchanges.RESPONSE_BYTES,
    exchanges.INPUT_TOKENS,
    exchanges.OUTPUT_TOKENS,
    exchanges.CACHED_TOKENS,
    exchanges.TIME_PER_TOKEN,
    exchanges.DURATION_PER_TOKEN,
    exchanges.WITHOUT_USAGE,
)


class _Series:
    """The children of one set of labels."""

    __slots__ = ("duration", "error_codes", "exchanges", "labels", "open", "running", "total")

    def __init__(self, metrics: EventMetrics, labels: Labels) -> None:
        self.labels = labels
        self.total: Counter = metrics.child(rows.REQUESTS, *labels)
        self.running: Gauge = metrics.child(rows.REQUESTS_RUNNING, *labels)
        self.duration: Buckets = metrics.child(rows.REQUEST_DURATION, *labels)
        self.exchanges: _Exchanges | None = None
        self.open = 0  # requests that were counted as running and have not ended
        self.error_codes: set[str] = set()


class RequestSeries:
    """Counts requests by their names; `known` is read at each new name."""

    def __init__(self, metrics: EventMetrics, known: Callable[[], KnownNames], callers: CallerLabels) -> None:
        self._metrics = metrics
        self._callers = callers
        self._label = LabelLimiter(
            MODEL_NAMES,
            UNPINNED_MODEL_NAMES,
            listed=lambda name: known().serves_model(name),
            unlisted=lambda pool: not known().lists_models(pool),
            free=self._free,
        )
        self._series: dict[Labels, _Series] = {}
        # Names -> series, for names with labels of their own: these stay while requests are in flight, so that the end
        # of a request finds the series of its pick.
        self._own: dict[RequestNames, _Series] = {}
        # The same for names that share `other`, as long as they do: a series for each request in flight.
        self._shared: dict[RequestNames, list[_Series]] = {}
        self._rewritten: set[tuple[str, str]] = set()
        self._combinations: set[Labels] = set()

    def declare(self, names: Iterable[str]) -> None:
        """Replace the names of models that the configuration declares."""
        self._label.declare(names)

    def picked(self, pool: str, names: RequestNames) -> None:
        """A request was picked."""
        series = self._own.get(names)
        if series is None:
            series = self._of(pool, names)
            if names not in self._own:
                self._shared.setdefault(names, []).append(series)
        series.open += 1
        series.total.inc()
        series.running.inc()

    def ended(self, pool: str, names: RequestNames, took: float) -> None:
        """A picked request ended, `took` seconds after its pick."""
        shared = self._shared.get(names) if self._shared else None
        if shared is not None:
            series = shared.pop()
            if not shared:
                del self._shared[names]
        else:
            series = self._own.get(names) or self._of(pool, names)
        series.open -= 1
        series.running.dec()
        series.duration.observe(took)

    def refused(self, pool: str, names: RequestNames, code: str, slo: Slo = NO_SLO) -> None:
        """A request was rejected; `code` is the reference's name of the error, `slo` what it has missed by that."""
        series = self._of(pool, names)
        if slo != NO_SLO:
            self._count_slo(series, refusal(slo), None)
        series.total.inc()
        series.error_codes.add(code)
        self._metrics.count(rows.REQUEST_ERRORS, *series.labels, code)

    def completed(
        self,
        pool: str,
        names: RequestNames,
        result: str,
        status: int,
        exchange: Exchange | None,
        slo: Slo = NO_SLO,
    ) -> None:
        """The proxy reported the end of a picked request. Numbers that it did not measure are not counted."""
        series = self._own.get(names) or self._of(pool, names)
        found = self._exchanges(series)
        code = str(int(status)) if status in CODES else OTHER
        counter = found.results.get((code, result))
        if counter is None:
            counter = self._metrics.child(exchanges.RESULTS, *series.labels, code, result)
            found.results[code, result] = counter
        counter.inc()
        if slo != NO_SLO:
            self._count_slo(series, attainment(slo, result, exchange), exchange)
        if exchange is None:
            return
        found.request_bytes.observe(exchange.request_bytes)
        found.response_bytes.observe(exchange.response_bytes)
        if not 200 <= status < 300:
            return
        if exchange.first_token is not None:
            (found.ttft_streamed if exchange.streamed else found.ttft_whole).observe(exchange.first_token)
        if result != OK:  # of a response that broke off
            return
        usage = exchange.usage
        if usage.prompt is None and usage.completion is None:
            found.without_usage.inc()
            return
        if usage.prompt is not None:
            found.input.observe(usage.prompt)
        if usage.cached is not None:
            found.cached.observe(usage.cached)
        output = usage.completion
        if output is None:
            return
        found.output.observe(output)
        if output > 0:
            found.duration_per_token.observe(exchange.duration / output)
        if output > 1 and exchange.streamed and exchange.first_token is not None:
            found.time_per_token.observe((exchange.last_token - exchange.first_token) / (output - 1))

    def _exchanges(self, series: _Series) -> _Exchanges:
        found = series.exchanges
        if found is None:
            found = series.exchanges = _Exchanges(self._metrics, series.labels)
        return found

    def _count_slo(self, series: _Series, attained: Mapping[str, str], exchange: Exchange | None) -> None:
        if not attained:
            return
        found, labels = self._exchanges(series), series.labels
        for objective, result in attained.items():
            if (objective, result) not in found.slos:  # all results from 0 on: a ratio needs both of its parts
                for each in (MET, MISSED, NOT_MEASURED):
                    found.slos[objective, each] = self._metrics.child(exchanges.SLO, *labels, objective, each)
            found.slos[objective, result].inc()
        good, tokens = (self._metrics.child(row, *labels) for row in (exchanges.GOODPUT, exchanges.GOODPUT_TOKENS))
        if all(result == MET for result in attained.values()):
            good.inc()
            tokens.inc(0 if exchange is None else exchange.usage.completion or 0)

    def _of(self, pool: str, names: RequestNames) -> _Series:
        labels = self._labels(pool, names)
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series(self._metrics, labels)
        if OTHER not in labels:
            self._own[names] = series
        return series

    def _labels(self, pool: str, names: RequestNames) -> Labels:
        model, target = self._models(pool, names.model, names.target)
        caller, priority = self._callers.pair(names.caller, names.priority)
        labels = (model, target, caller, priority)
        if labels in self._combinations or (caller, priority) == _DEFAULT:
            return labels
        if len(self._combinations) >= COMBINATIONS:
            named = caller in self._callers.declared and caller != OTHER
            return (OTHER, OTHER, caller, priority) if named else (model, target, OTHER, OTHER)
        self._combinations.add(labels)
        return labels

    def _models(self, pool: str, model: str, target: str) -> tuple[str, str]:
        label = self._label(target, pool)
        if model == target:
            return label, label
        labels = (self._label(model, pool), label)
        if labels[0] not in (label, OTHER) and labels not in self._rewritten:
            if len(self._rewritten) >= REWRITTEN_PAIRS:
                return OTHER, label
            self._rewritten.add(labels)
        return labels

    def _free(self, label: str) -> bool:
        """Remove the series of a model's label; False where one of them has requests in flight."""
        found = {labels: series for labels, series in self._series.items() if label in labels[:2]}
        if any(series.open for series in found.values()):
            return False
        for labels, series in found.items():
            self._remove(labels, series)
            del self._series[labels]
            self._rewritten.discard(labels[:2])
            self._combinations.discard(labels)
        gone = set(found.values())
        self._own = {names: series for names, series in self._own.items() if series not in gone}
        return True

    def _remove(self, labels: Labels, series: _Series) -> None:
        for row in (rows.REQUESTS, rows.REQUESTS_RUNNING, rows.REQUEST_DURATION):
            self._metrics.remove(row, *labels)
        for code in series.error_codes:
            self._metrics.remove(rows.REQUEST_ERRORS, *labels, code)
        if series.exchanges is None:
            return
        for row in _ONE_EACH:
            self._metrics.remove(row, *labels)
        for streamed in ("true", "false"):
            self._metrics.remove(exchanges.TTFT, *labels, streamed)
        for objective, result in series.exchanges.slos:
            self._metrics.remove(exchanges.SLO, *labels, objective, result)
        if series.exchanges.slos:
            for row in (exchanges.GOODPUT, exchanges.GOODPUT_TOKENS):
                self._metrics.remove(row, *labels)
        for code, result in series.exchanges.results:
            self._metrics.remove(exchanges.RESULTS, *labels, code, result)
