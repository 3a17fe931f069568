"""The agent's log: a line for what an operator wants to know, and one line a minute for what goes on and on.

The first failure of its kind is written at once. Its repetitions are counted and written together when a minute has
passed, as `57 of 60 scrapes failed in 60 s`, so that a dead endpoint or a broken client costs a line a minute and not
a line a second. Requests that go well write nothing: they are in the metrics.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from agent.clock import Clock
from agent.events.accelerators import DeviceHealthChanged, DevicesFailed, DevicesRead
from agent.events.process import Reloaded, WatcherDropped
from agent.events.requests import Refused, StreamBroken
from agent.events.scraping import (
    BudgetOutgrown,
    HealthChanged,
    HealthPathFailed,
    ScrapeDone,
    ScrapeFailed,
    ServerRestarted,
)

LOGGER: Final = "igw"
QUIET_SECONDS: Final = 60.0
KINDS: Final = 4096  # of trouble that are told apart; past it the oldest is forgotten and may be told anew
DETAIL_LENGTH: Final = 300  # characters of somebody else's text in a line


class _Streak:
    __slots__ = ("attempts", "failures", "told_at")

    def __init__(self, now: float) -> None:
        self.told_at = now
        self.failures = 0
        self.attempts = 0


class Repeats:
    """Tells which failures deserve a line. Pure: every method is told `now`."""

    def __init__(self, quiet_seconds: float = QUIET_SECONDS, kinds: int = KINDS) -> None:
        self._quiet = quiet_seconds
        self._kinds = kinds
        self._streaks: dict[Hashable, _Streak] = {}

    def went_well(self, kind: Hashable) -> None:
        """An attempt of this kind succeeded: it counts among the attempts, if anything of the kind failed before."""
        streak = self._streaks.get(kind)
        if streak is not None:
            streak.attempts += 1

    def failed(self, kind: Hashable, now: float) -> tuple[int, int, float] | None:
        """None when the failure is only to be counted, else a line is due.

        The line is for `failures` of `attempts` in the given seconds, this failure included: (1, 1, 0.0) for the first.
        """
        streak = self._streaks.get(kind)
        if streak is None:
            while len(self._streaks) >= self._kinds:
                del self._streaks[next(iter(self._streaks))]
            self._streaks[kind] = _Streak(now)
            return 1, 1, 0.0
        streak.failures += 1
        streak.attempts += 1
        passed = now - streak.told_at
        if passed < self._quiet:
            return None
        due = streak.failures, streak.attempts, passed
        streak.told_at, streak.failures, streak.attempts = now, 0, 0
        return due


class LogLines:
    """Writes events to the logger `igw`. It never raises and never waits for more than the handler's write."""

    def __init__(self, clock: Clock, logger: logging.Logger | None = None) -> None:
        self._clock = clock
        self._logger = logger or logging.getLogger(LOGGER)
        self._repeats = Repeats()

    def scrape_done(self, event: ScrapeDone) -> None:
        """Only a value that cannot be true is worth a line."""
        self._repeats.went_well((event.pool, event.endpoint))
        for refusal in event.refused:
            kind = (event.pool, event.endpoint, refusal.signal, refusal.reason)
            due = self._repeats.failed(kind, event.at)
            if due:
                what = f"{event.endpoint} reports {_short(refusal.text)} for {refusal.signal}"
                text = f"{what}: {refusal.reason}, not let in{_times(due)}"
                self._write(logging.WARNING, event.pool, text, endpoint=event.endpoint, reason=refusal.reason)

    def scrape_failed(self, event: ScrapeFailed) -> None:
        due = self._repeats.failed((event.pool, event.endpoint), event.at)
        if due:
            text = f"scrape of {event.endpoint} failed: {event.reason}: {_short(event.detail)}{_of_scrapes(due)}"
            self._write(logging.WARNING, event.pool, text, endpoint=event.endpoint, reason=event.reason)

    def devices_read(self, event: DevicesRead) -> None:
        """Only a value that cannot be true is worth a line."""
        self._repeats.went_well((event.source, event.exporter))
        for refusal in event.refused:
            due = self._repeats.failed((event.source, event.exporter, refusal.signal, refusal.reason), event.at)
            if due:
                what = f"{event.source} exporter {event.exporter} reports {_short(refusal.text)} for {refusal.signal}"
                text = f"{what}: {refusal.reason}, not let in{_times(due)}"
                self._write(logging.WARNING, "", text, exporter=event.exporter, reason=refusal.reason)

    def devices_failed(self, event: DevicesFailed) -> None:
        due = self._repeats.failed((event.source, event.exporter), event.at)
        if due:
            what = f"scrape of {event.source} exporter {event.exporter} failed"
            text = f"{what}: {event.reason}: {_short(event.detail)}{_of_scrapes(due)}"
            self._write(logging.WARNING, "", text, exporter=event.exporter, reason=event.reason)

    def device_health_changed(self, event: DeviceHealthChanged) -> None:
        level = logging.WARNING if event.reason else logging.INFO
        how = f"is sick ({event.reason}): {_short(event.detail)}" if event.reason else "is well again"
        text = f"accelerator {_short(event.device)} of {event.source} exporter {event.exporter} {how}"
        self._write(level, "", text, exporter=event.exporter, device=event.device, reason=event.reason)

    def health_path_failed(self, event: HealthPathFailed) -> None:
        due = self._repeats.failed((event.pool, event.endpoint, event.reason), event.at)
        if due:
            text = f"the health path of {event.endpoint} failed: {event.reason}: {_short(event.detail)}{_times(due)}"
            self._write(logging.WARNING, event.pool, text, endpoint=event.endpoint, reason=event.reason)

    def health_changed(self, event: HealthChanged) -> None:
        level = logging.INFO if event.new == "healthy" else logging.WARNING
        why = f" ({event.reason})" if event.reason else ""
        text = f"{event.endpoint} is {event.new}{why}, was {event.old}"
        self._write(level, event.pool, text, endpoint=event.endpoint, reason=event.reason)

    def server_restarted(self, event: ServerRestarted) -> None:
        due = self._repeats.failed((event.pool, event.endpoint, event.reason), self._clock.now())
        if due:
            text = (
                f"a new server answers at {event.endpoint} ({event.reason}): what was known of the old one is dropped"
            )
            if due[0] > 1:
                text += f"{_times(due)}; do several servers answer there in turn? list each by an address of its own"
            self._write(logging.INFO, event.pool, text, endpoint=event.endpoint, reason=event.reason)

    def refused(self, event: Refused) -> None:
        due = self._repeats.failed((event.pool, event.status, event.reason), self._clock.now())
        if due:
            text = f"a request was answered with {event.status}: {event.reason}{_times(due)}"
            self._write(logging.WARNING, event.pool, text, status=event.status, reason=event.reason)

    def stream_broken(self, event: StreamBroken) -> None:
        due = self._repeats.failed((event.pool, event.reason), self._clock.now())
        if due:
            text = f"an ext_proc stream broke: {event.reason}: {_short(event.detail)}{_times(due)}"
            self._write(logging.WARNING, event.pool, text, reason=event.reason)

    def budget_outgrown(self, event: BudgetOutgrown) -> None:
        key, unit = ("scrapesPerSecond", "scrapes/s") if event.of == "scrapes" else ("cpu", "cores")
        self._write(
            logging.WARNING,
            "",
            f"{event.endpoints} endpoints need {event.needed:.3g} {unit} to stay fresh, and scrape.budget.{key} is "
            f"{event.budget:.3g}: they stay fresh and exceed it; write more, or a longer state.staleAfter",
        )

    def reloaded(self, event: Reloaded) -> None:
        if event.ok:
            self._write(logging.INFO, "", f"configuration reloaded: {event.detail}")
        else:
            self._write(logging.ERROR, "", f"configuration not reloaded, the old one stays: {event.detail}")

    def watcher_dropped(self, event: WatcherDropped) -> None:
        due = self._repeats.failed(("watcher", event.reason), self._clock.now())
        if due:
            self._write(logging.WARNING, "", f"a reader of the admin address was let go: {event.reason}{_times(due)}")

    def _write(self, level: int, pool: str, text: str, **fields: object) -> None:
        if pool:
            fields["pool"] = pool
            text = f"pool {pool}: {text}"
        self._logger.log(level, "%s", text, extra={"fields": fields})


def _times(due: tuple[int, int, float]) -> str:
    failures, _, passed = due
    return f" ({failures} times in {passed:.0f} s)" if failures > 1 else ""


def _of_scrapes(due: tuple[int, int, float]) -> str:
    failures, attempts, passed = due
    return f" ({failures} of {attempts} scrapes failed in {passed:.0f} s)" if attempts > 1 else ""


def _short(text: str) -> str:
    """Somebody else's text on one line, with a bound."""
    line = text[:DETAIL_LENGTH]
    if not line.isprintable():
        line = line.encode("unicode_escape").decode()
    return line if len(text) <= DETAIL_LENGTH and len(line) <= DETAIL_LENGTH else line[: DETAIL_LENGTH - 3] + "..."


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextLines(logging.Formatter):
    """Time, level and message, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        text = f"{_time(record)} {record.levelname.lower():<7} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def write_log(
    stream: TextIO,
    form: Literal["text", "json"] = "text",
    level: str = "info",
    *,
    warnings_of_libraries: bool = False,
) -> logging.Handler:
    """Send what the agent logs to `stream`, and what libraries warn of in the same form where that is wanted.

    Returns the handler, to be removed by who wants to stop that.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logger = logging.getLogger(LOGGER)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False
    if warnings_of_libraries:
        logging.getLogger().addHandler(handler)
    return handler
