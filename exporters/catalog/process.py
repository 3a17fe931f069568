"""Metrics of the agent's process: its configuration, its admin address, and what the operating system reports."""

from __future__ import annotations

from typing import Final

from exporters.catalog.metric import Rows

ROWS: Final = Rows()

RELOADS: Final = ROWS.counter(
    "igw_reloads_total", "reloads", "result", "Reloads of the configuration, by result (ok, failed)"
)
RELOAD_GOOD: Final = ROWS.add(
    "igw_config_last_reload_successful",
    "gauge",
    "boolean",
    "",
    "events",
    "1 if the configuration file was valid when it was last read, 0 if it was refused",
)
TASK_FAILURES: Final = ROWS.counter(
    "igw_task_failures_total",
    "failures",
    "task",
    "Failures of the agent's long-running tasks and periodic jobs, which are then restarted",
)
WATCHERS_DROPPED: Final = ROWS.counter(
    "igw_watchers_dropped_total",
    "watchers",
    "reason",
    "Clients of the admin address that were disconnected or refused: slow, too_many or too_large",
)


def _process(name: str, unit: str, help: str) -> None:
    """A metric that prometheus_client reads from /proc."""
    ROWS.add(name, "counter" if name.endswith("_total") else "gauge", unit, "", "process", help)


_process("process_cpu_seconds_total", "seconds", "CPU time used by the agent, user and system")
_process("process_max_fds", "files", "Maximum number of open file descriptors")
_process("process_open_fds", "files", "Number of open file descriptors")
_process("process_resident_memory_bytes", "bytes", "Resident memory of the agent")
_process("process_start_time_seconds", "seconds since 1970", "Start time of the agent")
_process("process_virtual_memory_bytes", "bytes", "Virtual memory of the agent")
