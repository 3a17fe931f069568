"""The output of the demo: steps, a progress bar and tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Final

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from agent.demo.client import RunProgress
from agent.demo.report import TableRow

_PLAIN_STEPS: Final = 5  # lines per run without a progress bar
_PLAIN_WIDTH: Final = 120
_MAX_WIDTH: Final = 400  # wider than any table


class Screen:
    """Writes to standard output."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # print ? for what the encoding lacks
        self._console = Console(highlight=False, emoji=False)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        if not self._console.is_terminal:
            self._console = Console(highlight=False, emoji=False, width=_PLAIN_WIDTH)

    def print_line(self, text: str = "") -> None:
        """Print a line without markup."""
        self._console.print(text, markup=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """Print a heading."""
        self._console.print()
        self._console.print(text, style="bold", markup=False, soft_wrap=True)

    def table(self, head: Sequence[str], rows: Sequence[TableRow]) -> None:
        """Print a table; all columns but the first are right-aligned."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index else "left", no_wrap=True)
        for row in rows:
            table.add_row(row.label, *row.cells)
        # In a narrow terminal lines wrap, as truncated figures would be unreadable.
        needed = Measurement.get(self._console, self._console.options.update(width=_MAX_WIDTH), table).maximum
        self._console.print(table, width=max(needed, self._console.width), crop=False)

    @contextmanager
    def run(self, name: str, total: int) -> Iterator[Callable[[RunProgress], None]]:
        """Show the progress of a run; yields the function to call with each progress."""
        if not self._live:
            yield self._plain(name, total)
            return
        columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[status]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            task = progress.add_task(name, total=total, status="")
            yield lambda run: progress.update(task, completed=run.ended, status=_status(run))

    def _plain(self, name: str, total: int) -> Callable[[RunProgress], None]:
        due = [total * step // _PLAIN_STEPS for step in range(1, _PLAIN_STEPS + 1)]

        def on_progress(run: RunProgress) -> None:
            while due and run.ended >= due[0]:
                if len(due) == 1 or run.ended < due[1]:
                    self.print_line(f"  {name}: {_status(run)}")
                due.pop(0)

        return on_progress


def _status(run: RunProgress) -> str:
    failed = sum(run.errors.values())
    waiting = f", {run.sent - run.ended} in flight" if run.sent > run.ended else ""
    return f"{run.ended} of {run.total} answered{waiting}" + (f", {failed} failed" if failed else "")
