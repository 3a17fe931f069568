"""What the request metrics cost: CPU time of the agent for each request whose exchange the proxy's log reports.

    .venv/bin/python -m tests.bench.bench_observe [--json]

Batches of 64 entries, as Envoy writes them, are decoded and applied to a pool that has picked their requests, and
their events are counted; once with what the proxy measured, and once with entries that have the status alone and
without the events of the request metrics. The difference is what the metrics add. Each figure is the median of seven
runs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from statistics import median
from typing import Final

from envoy.service.accesslog.v3 import als_pb2 as pb

from agent.events import Event, Hook
from agent.events.exchange import TokenUsage
from agent.events.requests import Completed
from agent.instruments.hook import Instruments
from agent.prefix.index import PrefixIndex
from agent.requests.exchange_text import TAG
from agent.requests.outcomes import Outcomes
from agent.requests.ticket import Request, Ticket
from agent.serve.access_log import response_of
from agent.state.store import RoutingStore
from tests.bench.figure_table import FigureTable
from tests.fakes.clock import ManualClock

ENDPOINT: Final = "10.0.0.1:8000"
BATCH: Final = 64
BATCHES: Final = 150
RUNS: Final = 7
LINE: Final = "2000000 500000 1900000 1000 5000 100 15 64 text/event-stream; charset=utf-8"
BAR_MICROSECONDS: Final = 15.0


class NoOwner:
    """What a ticket calls: nothing follows."""

    def resume(self, ticket: Ticket, result: object) -> bool:
        return False

    def cancelled(self, ticket: Ticket) -> None:
        """Nothing."""

    def reported(self, ticket: Ticket, report: str, served: str) -> None:
        """Nothing."""

    def responded(self, ticket: Ticket, response: object) -> None:
        """Nothing."""

    def body_started(self, ticket: Ticket) -> None:
        """Nothing."""

    def body_ended(self, ticket: Ticket, size: int, usage: TokenUsage, *, streamed: bool) -> None:
        """Nothing."""

    def ended(self, ticket: Ticket, how: str) -> None:
        """Nothing."""


def batch(*, measured: bool) -> bytes:
    """A batch of entries of requests r0, r1, ..."""
    message = pb.StreamAccessLogsMessage()
    for number in range(BATCH):
        entry = message.http_logs.log_entry.add()
        entry.request.request_id = f"r{number}"
        entry.response.response_code.value = 200
        entry.common_properties.duration.FromMilliseconds(2000)
        socket = entry.common_properties.upstream_remote_address.socket_address
        socket.address, socket.port_value = "10.0.0.1", 8000
        if measured:
            entry.common_properties.custom_tags[TAG] = LINE
    return message.SerializeToString()


def without_request_metrics(hook: Hook) -> Hook:
    """A hook that ignores the events of the request metrics."""

    def call(event: Event) -> None:
        if type(event) is not Completed:
            hook(event)

    return call


def microseconds(data: bytes, *, metrics: bool) -> float:
    """CPU time for each entry, of one run."""
    instruments = Instruments(ManualClock())
    hook: Hook = instruments if metrics else without_request_metrics(instruments)
    store = RoutingStore("pool", stale_after=3.0)
    store.set_endpoints({ENDPOINT: "vllm"}, 0.0)
    outcomes = Outcomes(store, PrefixIndex(), hook)
    outcomes.log_opened()
    owner, spent = NoOwner(), 0.0
    for _ in range(BATCHES):
        for number in range(BATCH):
            ticket = Ticket(owner, Request(f"r{number}"), lambda *_: None, 0.0)
            ticket.model, ticket.endpoint = "m", ENDPOINT
            ticket.work_id = store.started(ENDPOINT, 10, 0, 0.0)
            outcomes.picked(ticket, (), 0, 64)
            store.ended(ticket.work_id, 0.0)
            outcomes.ended(ticket, "closed", 0.0)
        begin = time.thread_time()
        for entry in pb.StreamAccessLogsMessage.FromString(data).http_logs.log_entry:
            outcomes.logged(entry.request.request_id, response_of(entry), 0.0)
        spent += time.thread_time() - begin
    return spent / (BATCH * BATCHES) * 1e6


def main(arguments: list[str] | None = None) -> int:
    """Print the table; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    args = parser.parse_args(arguments)
    table = FigureTable(quiet=args.json)
    plain, full = [], []
    for _ in range(RUNS):
        plain.append(microseconds(batch(measured=False), metrics=False))
        full.append(microseconds(batch(measured=True), metrics=True))
    table.row("an entry without request metrics, us", median(plain))
    table.row("an entry with them, us", median(full))
    table.row("  added for each request, us", median(full) - median(plain), BAR_MICROSECONDS)
    if args.json:
        for figure in table.figures:
            print(json.dumps(figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
