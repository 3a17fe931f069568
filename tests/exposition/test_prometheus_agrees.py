"""A page that a real Prometheus accepts is never misread: the scanner is compared with Prometheus and its parsers.

Prometheus 2.42 is the reference for all pages, the parser of prometheus-client 0.26 for pages without a risk. The
latter accepts what Prometheus refuses: `+NaN`, `1e999`, digits of other scripts, indented lines, CR line ends, a last
line without an end, timestamps with a point or a sign, words after a timestamp. It refuses a line end within a label
value, and labels without a comma between, which Prometheus's scraper accepts and promtool refuses. It drops the sign of
`-0`.
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
from tests.exposition.odd_pages import NAMES, RISKS, odd_page
from tests.fuzz.pages import scanned
from tests.fuzz.plain import Sample, read
from tests.journeys.prometheus import Prometheus
from tests.processes import Processes
from tests.waiting import until

PAGES = 400
# What Prometheus accepts and the scanner refuses: labels without a comma, a page without an end, a line end in a value.
REFUSED_RISKS = {"no comma", "no end", "newline in a label"}

Series = tuple[str, frozenset[tuple[str, str]]]


class PrometheusResult(NamedTuple):
    """Whether Prometheus accepted a page, and its series of the wanted names."""

    accepted: bool
    series: dict[Series, str]


class PageHandler(BaseHTTPRequestHandler):
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


class PageServer(ThreadingHTTPServer):
    """Prometheus opens all its connections within a second."""

    request_queue_size = PAGES
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors: Prometheus resets a connection when it has opened another for the same page."""


def scan(page: bytes) -> list[tuple[Series, str]] | None:
    """The series that the scanner reads, without empty labels, as in Prometheus; None: the page is refused."""
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
def results(
    written: list[tuple[bytes, str]],
    tmp_path_factory: pytest.TempPathFactory,
    free_ports: Callable[[int], list[int]],
) -> Iterator[list[PrometheusResult]]:
    """The result of one Prometheus for all pages, each a target."""
    folder = tmp_path_factory.mktemp("prometheus")
    processes = Processes(folder)
    server = PageServer(
        ("127.0.0.1", 0), type("Written", (PageHandler,), {"bodies": tuple(page for page, _ in written)})
    )
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

        def scraped() -> dict[int, bool]:
            found = prometheus.targets()
            health = {int(target["labels"]["page"]): target["health"] for target in found}
            return {page: state == "up" for page, state in health.items() if state != "unknown"}

        until(lambda: len(scraped()) == len(written), 60, "Prometheus to scrape every page")
        series: list[dict[Series, str]] = [{} for _ in written]
        for labels, value in prometheus.query('{job="pages",__name__=~"vllm:.+"}'):
            page, name = int(labels.pop("page")), labels.pop("__name__")
            kept = frozenset((label, text) for label, text in labels.items() if label not in ("job", "instance"))
            if name in NAMES:
                series[page][name, kept] = repr(value)
        accepted = scraped()
        yield [PrometheusResult(accepted[place], found) for place, found in enumerate(series)]
    finally:
        processes.stop_all()
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_page_that_prometheus_accepts_is_read_with_equal_values_or_refused(
    written: list[tuple[bytes, str]], results: list[PrometheusResult]
) -> None:
    for (page, risk), result in zip(written, results, strict=True):
        if not result.accepted:
            continue
        found = scan(page)
        assert all(result.series.get(series) == value for series, value in found or ()), (risk, page)
        if risk not in REFUSED_RISKS:
            assert dict(found or ()) == result.series, (risk, page)


def test_the_pages_cover_all_risks_and_most_are_accepted(
    written: list[tuple[bytes, str]], results: list[PrometheusResult]
) -> None:
    accepted = Counter(risk for (_, risk), result in zip(written, results, strict=True) if result.accepted)
    assert {risk for _, risk in written} == {"", *RISKS}
    assert accepted[""] > PAGES / 3
    assert {"no comma", "newline in a label", "odd escape", "no blank", "glued value", "eof"} <= accepted.keys()
    assert sum(len(result.series) for result in results) > PAGES


def test_the_reference_reader_of_the_fuzzer_agrees_with_prometheus(
    written: list[tuple[bytes, str]], results: list[PrometheusResult]
) -> None:
    for (page, risk), result in zip(written, results, strict=True):
        if result.accepted and risk not in REFUSED_RISKS:
            lines = [line for line in read(page, NAMES) if isinstance(line, Sample)]
            series = [(line.name, frozenset((k, v) for k, v in line.labels.items() if v)) for line in lines]
            assert dict(zip(series, (repr(line.value) for line in lines), strict=True)) == result.series, page


@given(st.randoms(use_true_random=False))
def test_a_page_without_a_risk_reads_as_in_prometheus_client(random: Random) -> None:
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
