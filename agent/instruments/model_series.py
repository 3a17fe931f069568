"""The series of requests by model: their number is bounded, whatever names clients send and servers list.

A request is counted under one pair of labels from its pick to its end, even where the label of its model changes
meanwhile: a gauge of running requests would drift otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from agent.instruments.event_metrics import EventMetrics
from agent.instruments.known_names import KnownNames
from agent.instruments.label_limiter import OTHER, LabelLimiter
from exporters.catalog import requests as rows

# Distinct names that servers list; the reference's limit. Those that the configuration declares come on top.
MODEL_NAMES: Final = 1000
# Names in pools whose servers list no models, such as Triton's: the agent cannot tell a model from a wrong name there.
UNPINNED_MODEL_NAMES: Final = 20
# Pairs of a requested and another served model, where both have labels of their own.
REWRITTEN_PAIRS: Final = 200

# The reference's defaults of labels that no request sets yet.
FAIRNESS_ID: Final = "default-flow"
PRIORITY: Final = "0"

Labels = tuple[str, str]  # model_name, target_model_name


class _Series:
    """The children of one pair of labels."""

    __slots__ = ("duration", "error_codes", "open", "running", "total")

    def __init__(self, total: Counter, running: Gauge, duration: Histogram) -> None:
        self.total = total
        self.running = running
        self.duration = duration
        self.open = 0  # requests that were counted as running and have not ended
        self.error_codes: set[str] = set()


class ModelSeries:
    """Counts requests by the model that they name and the model that serves them; `names` is read at each new name."""

    def __init__(self, metrics: EventMetrics, names: Callable[[], KnownNames]) -> None:
        self._metrics = metrics
        self._label = LabelLimiter(
            MODEL_NAMES,
            UNPINNED_MODEL_NAMES,
            listed=lambda name: names().serves_model(name),
            unlisted=lambda pool: not names().lists_models(pool),
            free=self._free,
        )
        self._series: dict[Labels, _Series] = {}
        # Requested and served name -> series, for names with labels of their own: these stay while requests are in
        # flight, so that the end of a request finds the series of its pick.
        self._own: dict[Labels, _Series] = {}
        # The same for names that share `other`, as long as they do: a series for each request in flight.
        self._shared: dict[Labels, list[_Series]] = {}
        self._rewritten: set[Labels] = set()

    def declare(self, names: Iterable[str]) -> None:
        """Replace the names of models that the configuration declares."""
        self._label.declare(names)

    def picked(self, pool: str, model: str, target: str) -> None:
        """A request for `model` was picked, to be served by `target`."""
        series = self._own.get((model, target))
        if series is None:
            series = self._of(pool, model, target)
            if (model, target) not in self._own:
                self._shared.setdefault((model, target), []).append(series)
        series.open += 1
        series.total.inc()
        series.running.inc()

    def ended(self, pool: str, model: str, target: str, took: float) -> None:
        """A picked request ended, `took` seconds after its pick."""
        names = (model, target)
        shared = self._shared.get(names) if self._shared else None
        if shared is not None:
            series = shared.pop()
            if not shared:
                del self._shared[names]
        else:
            series = self._own.get(names) or self._of(pool, model, target)
        series.open -= 1
        series.running.dec()
        series.duration.observe(took)

    def refused(self, pool: str, model: str, target: str, code: str) -> None:
        """A request was rejected; `code` is the reference's name of the error."""
        series = self._of(pool, model, target)
        series.total.inc()
        series.error_codes.add(code)
        self._metrics.count(rows.REQUEST_ERRORS, *self._labels(pool, model, target), FAIRNESS_ID, PRIORITY, code)

    def _of(self, pool: str, model: str, target: str) -> _Series:
        labels = self._labels(pool, model, target)
        series = self._series.get(labels)
        if series is None:
            values = (*labels, FAIRNESS_ID, PRIORITY)
            series = self._series[labels] = _Series(
                self._metrics.child(rows.REQUESTS, *values),
                self._metrics.child(rows.REQUESTS_RUNNING, *values),
                self._metrics.child(rows.REQUEST_DURATION, *values),
            )
        if OTHER not in labels:
            self._own[model, target] = series
        return series

    def _labels(self, pool: str, model: str, target: str) -> Labels:
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
        """Remove the series of a label; False where one of them has requests in flight."""
        found = {labels: series for labels, series in self._series.items() if label in labels}
        if any(series.open for series in found.values()):
            return False
        for labels, series in found.items():
            values = (*labels, FAIRNESS_ID, PRIORITY)
            for row in (rows.REQUESTS, rows.REQUESTS_RUNNING, rows.REQUEST_DURATION):
                self._metrics.remove(row, *values)
            for code in series.error_codes:
                self._metrics.remove(rows.REQUEST_ERRORS, *values, code)
            del self._series[labels]
            self._rewritten.discard(labels)
        gone = set(found.values())
        self._own = {names: series for names, series in self._own.items() if series not in gone}
        return True
