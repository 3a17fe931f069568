"""What a person sees of the demo: steps, a bar, tables. Where nobody looks at a terminal, plain lines."""

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

from agent.demo.client import Progress as Run
from agent.demo.report import Row

_PLAIN_STEPS: Final = 5  # lines about one run where there is no bar
_PLAIN_WIDTH: Final = 120
_WIDEST: Final = 400  # more than any table needs


class Screen:
    """Standard output."""

    def __init__(self) -> None:
        if isinstance(sys.stdout, TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # better a question mark than no table
        self._console = Console(highlight=False, emoji=False)
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal
        if not self._console.is_terminal:
            self._console = Console(highlight=False, emoji=False, width=_PLAIN_WIDTH)

    def say(self, text: str = "") -> None:
        """A line, as it is."""
        self._console.print(text, markup=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """The heading of what follows."""
        self._console.print()
        self._console.print(text, style="bold", markup=False, soft_wrap=True)

    def table(self, head: Sequence[str], rows: Sequence[Row]) -> None:
        """A table; the cells behind the first column stand to the right."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
        for place, name in enumerate(head):
            table.add_column(name, justify="right" if place else "left", no_wrap=True)
        for row in rows:
            table.add_row(row.label, *row.cells)
        # A window that is too narrow breaks lines, which reads better than figures cut short.
        needed = Measurement.get(self._console, self._console.options.update(width=_WIDEST), table).maximum
        self._console.print(table, width=max(needed, self._console.width), crop=False)

    @contextmanager
    def run(self, name: str, total: int) -> Iterator[Callable[[Run], None]]:
        """Show how a run goes on; what it yields is told at every step."""
        if not self._live:
            yield self._plain(name, total)
            return
        columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[said]}"))
        with Progress(*columns, TimeElapsedColumn(), console=self._console) as progress:
            task = progress.add_task(name, total=total, said="")
            yield lambda run: progress.update(task, completed=run.ended, said=_said(run))

    def _plain(self, name: str, total: int) -> Callable[[Run], None]:
        due = [total * step // _PLAIN_STEPS for step in range(1, _PLAIN_STEPS + 1)]

        def moved(run: Run) -> None:
            while due and run.ended >= due[0]:
                if len(due) == 1 or run.ended < due[1]:
                    self.say(f"  {name}: {_said(run)}")
                due.pop(0)

        return moved


def _said(run: Run) -> str:
    failed = sum(run.errors.values())
    waiting = f", {run.sent - run.ended} in flight" if run.sent > run.ended else ""
    return f"{run.ended} of {run.total} answered{waiting}" + (f", {failed} failed" if failed else "")
