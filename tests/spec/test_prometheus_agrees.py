"""A page that a real Prometheus accepts is never misread: Prometheus and prometheus-client's parser are asked.

Where the two differ Prometheus 2.42 is right, so its word is taken for all pages, and that of prometheus-client 0.26
for pages without a risk. The latter accepts what Prometheus refuses: `+NaN`, `1e999`, digits of other scripts,
indented lines, line ends with CR, a last line without an end, time stamps with a point or a sign, words behind a time
stamp. It refuses a line end within a label's text, and labels without a comma between, which Prometheus's scraper
takes and promtool refuses. It drops the sign of `-0`.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.exposition.page import PageRefused, Scanner, SharedLayouts
from tests.fuzz.pages import scanned
from tests.fuzz.plain import Sample, read
from tests.journeys.prometheus import Prometheus
from tests.processes import Processes
from tests.spec.odd_pages import NAMES, RISKS, odd_page
from tests.waiting import until

PAGES = 400
# What Prometheus accepts and we do not read: labels without a comma, a page without an end, a line end in a text.
WITHHELD = {"no comma", "no end", "newline in a label"}

Series = tuple[str, frozenset[tuple[str, str]]]


class Verdict(NamedTuple):
    """What Prometheus made of a page: whether it took it, and the wanted series that it then had."""

    accepted: bool
    series: dict[Series, str]


class Pages(BaseHTTPRequestHandler):
    """Serves page N at `/N`."""

    protocol_version = "HTTP/1.1"
    bodies: tuple[bytes, ...] = ()

    def do_GET(self) -> None:
        body = self.bodies[int(self.path[1:])]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """Prometheus opens all its connections within a second."""

    request_queue_size = PAGES
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: Prometheus resets a connection when it has opened another for the same page."""


def ours(page: bytes) -> list[tuple[Series, str]] | None:
    """The wanted series that we read, labels without text left out as Prometheus does; None: the page is refused."""
    try:
        layout, numbers = Scanner(NAMES, layouts=SharedLayouts()).read(page)
    except PageRefused:
        return None
    return [
        ((series.name, frozenset((label, text) for label, text in series.labels.items() if text)), repr(value))
        for series, value in zip(layout.series, numbers, strict=True)
    ]


@pytest.fixture(scope="module")
def written() -> list[tuple[bytes, str]]:
    return [odd_page(Random(seed)) for seed in range(PAGES)]


@pytest.fixture(scope="module")
def verdicts(
    written: list[tuple[bytes, str]],
    tmp_path_factory: pytest.TempPathFactory,
    free_ports: Callable[[int], list[int]],
) -> Iterator[list[Verdict]]:
    """What one Prometheus makes of all of these pages, each a target of its own."""
    folder = tmp_path_factory.mktemp("prometheus")
    processes = Processes(folder)
    server = Server(("127.0.0.1", 0), type("Written", (Pages,), {"bodies": tuple(page for page, _ in written)}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        targets = [
            {
                "targets": [f"127.0.0.1:{server.server_address[1]}"],
                "labels": {"__metrics_path__": f"/{place}", "page": str(place)},
            }
            for place in range(len(written))
        ]
        times = {"scrape_interval": "5s", "scrape_timeout": "5s", "honor_timestamps": False}
        job = {"job_name": "pages", "static_configs": targets, **times}
        prometheus = Prometheus(processes, folder / "data", free_ports(1)[0], {}, more=[job])

        def asked() -> dict[int, bool]:
            found = prometheus.targets()
            health = {int(one["labels"]["page"]): one["health"] for one in found}
            return {page: word == "up" for page, word in health.items() if word != "unknown"}

        until(lambda: len(asked()) == len(written), 60, "Prometheus to ask for every page")
        series: list[dict[Series, str]] = [{} for _ in written]
        for labels, value in prometheus.query('{job="pages",__name__=~"vllm:.+"}'):
            page, name = int(labels.pop("page")), labels.pop("__name__")
            told = frozenset((label, text) for label, text in labels.items() if label not in ("job", "instance"))
            if name in NAMES:
                series[page][name, told] = repr(value)
        accepted = asked()
        yield [Verdict(accepted[place], found) for place, found in enumerate(series)]
    finally:
        processes.stop_all()
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_prometheus_accepts_is_read_as_prometheus_reads_it_or_not_at_all(
    written: list[tuple[bytes, str]], verdicts: list[Verdict]
) -> None:
    for (page, risk), verdict in zip(written, verdicts, strict=True):
        if not verdict.accepted:
            continue
        found = ours(page)
        assert all(verdict.series.get(series) == value for series, value in found or ()), (risk, page)
        if risk not in WITHHELD:
            assert dict(found or ()) == verdict.series, (risk, page)


def test_the_pages_are_odd_enough_and_most_of_them_are_accepted(
    written: list[tuple[bytes, str]], verdicts: list[Verdict]
) -> None:
    taken = Counter(risk for (_, risk), verdict in zip(written, verdicts, strict=True) if verdict.accepted)
    assert {risk for _, risk in written} == {"", *RISKS}
    assert taken[""] > PAGES / 3
    assert {"no comma", "newline in a label", "odd escape", "no blank", "glued value", "eof"} <= taken.keys()
    assert sum(len(verdict.series) for verdict in verdicts) > PAGES


def test_the_plain_reader_that_the_fuzzer_trusts_agrees_with_prometheus_too(
    written: list[tuple[bytes, str]], verdicts: list[Verdict]
) -> None:
    for (page, risk), verdict in zip(written, verdicts, strict=True):
        if verdict.accepted and risk not in WITHHELD:
            lines = [line for line in read(page, NAMES) if isinstance(line, Sample)]
            series = [(line.name, frozenset((k, v) for k, v in line.labels.items() if v)) for line in lines]
            assert dict(zip(series, (repr(line.value) for line in lines), strict=True)) == verdict.series, page


@given(st.randoms(use_true_random=False))
def test_what_is_read_from_a_page_that_takes_no_risk_is_what_prometheus_client_reads(random: Random) -> None:
    page, risk = odd_page(random)
    found = scanned(Scanner(NAMES, layouts=SharedLayouts()), page)
    if risk:
        return
    wanted = [
        (sample.name, frozenset(sample.labels.items()), repr(sample.value + 0.0))
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name in NAMES
    ]
    assert found is not None
    found = [(name, labels, repr(float(value) + 0.0)) for name, labels, value in found]
    assert sorted(found, key=repr) == sorted(wanted, key=repr)
