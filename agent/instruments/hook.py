"""The hook: turns events into the agent's own metrics and log lines.

Each module of `agent.events` has a module of the same name here, whose class holds, for each of its events, the handler
that counts it and the one that logs it. The hook is called for every pick and every scrape, so a handler looks its
counters up once and keeps them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry

from agent.clock import Clock
from agent.events import Event
from agent.events.flow import DispatchRun, FlowDecided, RequestHeld, RequestSubmitted
from agent.events.requests import Completed, Ended, Picked
from agent.events.scraping import ScrapeDone
from agent.instruments.accelerators import AcceleratorInstruments
from agent.instruments.access import AccessInstruments
from agent.instruments.caller_labels import CallerLabels
from agent.instruments.discovery import DiscoveryInstruments
from agent.instruments.event_log import EventLog
from agent.instruments.event_metrics import EventMetrics
from agent.instruments.flow import FlowInstruments
from agent.instruments.keda import KedaInstruments
from agent.instruments.known_names import KnownNames
from agent.instruments.kubernetes import KubernetesInstruments
from agent.instruments.leases import LeaseInstruments
from agent.instruments.metrics_api import MetricsApiInstruments
from agent.instruments.objectives import ObjectiveInstruments
from agent.instruments.process import ProcessInstruments
from agent.instruments.replicas import ReplicaInstruments
from agent.instruments.requests import RequestInstruments
from agent.instruments.scraping import ScrapingInstruments
from agent.instruments.tls import TlsInstruments


class Domain(Protocol):
    """The handlers of one module of events: type of event -> handler. Every event is counted; some are logged."""

    counts: Mapping[type, Callable[[Any], None]]
    lines: Mapping[type, Callable[[Any], None]]


# Events of which there may be thousands a second. They are counted in batches of this size, or when the metrics are
# read: counting many in a row costs a third of counting each one between other work.
_FREQUENT: Final = frozenset(
    {Picked, Ended, Completed, ScrapeDone, RequestHeld, RequestSubmitted, FlowDecided, DispatchRun}
)
BATCH_SIZE: Final = 256


class Instruments:
    """Call it with every event. `registry` holds the metrics, this agent's alone; `log` writes the lines."""

    def __init__(self, clock: Clock, log: EventLog | None = None) -> None:
        log = log or EventLog(clock)
        self._metrics = EventMetrics()
        self._uncounted: deque[Event] = deque()
        self._callers = CallerLabels()
        self._requests = RequestInstruments(self._metrics, log, self._callers)
        self._flow = FlowInstruments(self._metrics, log, self._callers)
        domains: tuple[Domain, ...] = (
            self._requests,
            ObjectiveInstruments(self._metrics, log),
            self._flow,
            ScrapingInstruments(self._metrics, log),
            AcceleratorInstruments(self._metrics, log),
            KedaInstruments(self._metrics, log),
            KubernetesInstruments(self._metrics, log),
            DiscoveryInstruments(self._metrics, log),
            LeaseInstruments(self._metrics, log),
            ProcessInstruments(self._metrics, log),
            AccessInstruments(self._metrics, log),
            MetricsApiInstruments(self._metrics, log),
            ReplicaInstruments(self._metrics, log),
            TlsInstruments(self._metrics, log),
        )
        self._counts = {kind: count for domain in domains for kind, count in domain.counts.items()}
        self._lines = {kind: line for domain in domains for kind, line in domain.lines.items()}

    def __call__(self, event: Event) -> None:
        """Count the event, and log it if its kind is logged."""
        kind = type(event)
        if kind in _FREQUENT:
            self._uncounted.append(event)
            if len(self._uncounted) >= BATCH_SIZE:
                self._count_batch()
        else:
            self._counts[kind](event)
        line = self._lines.get(kind)
        if line is not None:
            line(event)

    def set_names(self, names: KnownNames) -> None:
        """Use the names of these pools from now on: they have labels of their own."""
        self._requests.names = names
        self._flow.names = names

    def declare_models(self, names: Iterable[str]) -> None:
        """Replace the names of models that the configuration declares: they always have labels of their own."""
        declared = list(names)
        self._requests.declare_models(declared)
        self._flow.declare_models(declared)

    def declare_callers(self, names: Iterable[str]) -> None:
        """Replace the callers that the configuration declares: they always have labels of their own."""
        self._callers.declare(names)

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics, with every event counted."""
        self._count_batch()
        return self._metrics.registry

    def _count_batch(self) -> None:
        waiting = self._uncounted
        while True:
            try:
                event = waiting.popleft()  # a reader may run in a thread: no event is taken twice or lost
            except IndexError:
                return
            self._counts[type(event)](event)
