"""The scrape loop against good and bad servers: results by sink, without effect on other endpoints (simulated time)."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import orjson
import pytest

from agent.clock import Clock
from agent.exposition.page import PageRefused
from agent.scrape.loop import ScrapeLoop
from agent.scrape.probe import RESET_SECONDS
from agent.scrape.reasons import REASONS
from agent.scrape.scraper import model_names, model_roots
from agent.scrape.target import Target
from agent.signals import FINISHED, KV_USAGE, RUNNING
from agent.state.identity import Identity
from tests.fakes.model_server import (
    MODELS,
    PAGE,
    Behaviour,
    ModelServer,
    answer,
    break_off,
    drip,
    endless,
    good,
    hang,
    raw,
    reset,
)
from tests.fakes.simulated import LoopClock, raise_broken
from tests.scrape.sinks import RecordingSink
from tests.waiting import eventually

pytestmark = pytest.mark.simulated

INTERVAL = 0.05


OTHER_PAGE = PAGE.replace(b'_running{engine="0",model_name="tiny"} 4.0', b'_running{engine="0",model_name="tiny"} 7.0')
PAGE_IN_PIECES = tuple(answer(PAGE)[at : at + 7000] for at in range(0, len(PAGE) + 200, 7000))


class LoopRig:
    """A loop, a sink and some servers; all are stopped after the test."""

    def __init__(self, clock: Clock) -> None:
        self.loop = ScrapeLoop(clock)
        self.sink = RecordingSink()
        self.servers: list[ModelServer] = []

    async def server(self, behave: Behaviour = good) -> ModelServer:
        server = ModelServer(behave)
        await server.start()
        self.servers.append(server)
        return server

    def scrape(
        self, *addresses: str, timeout: float = 0.3, limit: int = 4 << 20, models: float = 1e9, health: str | None = ""
    ) -> None:
        self.loop.set_targets(
            "pool",
            [
                Target(
                    address,
                    "vllm",
                    interval=INTERVAL,
                    timeout=timeout,
                    max_page_bytes=limit,
                    models_interval=models,
                    health_path=health,
                )
                for address in addresses
            ],
            self.sink,
        )

    async def stop(self) -> None:
        await self.loop.stop()
        for server in self.servers:
            await server.stop()


@pytest.fixture
async def rig() -> AsyncIterator[LoopRig]:
    made = LoopRig(LoopClock(asyncio.get_running_loop()))
    yield made
    await made.stop()
    raise_broken()


async def test_pages_are_read_repeatedly_on_one_connection(rig: LoopRig) -> None:
    server = await rig.server()
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 5)
    assert server.connections == 1
    assert server.max_active == 1
    extraction, _, took, size = rig.sink.pages[server.address][0]
    assert extraction.readings[RUNNING] == 4
    assert size == len(PAGE)
    assert took >= 0
    times = [at for _, at, _, _ in rig.sink.pages[server.address]]
    assert times == sorted(set(times))


async def test_the_time_of_a_reading_is_that_of_the_request_and_not_of_the_response(rig: LoopRig) -> None:
    clock = LoopClock(asyncio.get_running_loop())
    held = asyncio.Event()
    written: list[float] = []

    async def slow(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(held.wait(), 10)
        written.append(clock.now())
        writer.write(answer(PAGE))

    server = await rig.server(slow)
    rig.scrape(server.address, timeout=10)
    await eventually(lambda: server.paths)
    before = clock.now()
    held.set()
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 1)
    _, at, took, _ = rig.sink.pages[server.address][0]
    assert at <= before <= written[0] <= at + took


class JumpingClock(LoopClock):
    """A clock that can jump ahead; `reads` counts its reads."""

    ahead = 0.0
    reads = 0

    def now(self) -> float:
        self.reads += 1
        return super().now() + self.ahead


async def test_a_pause_of_the_agent_itself_causes_no_time_outs(rig: LoopRig) -> None:
    clock = JumpingClock(asyncio.get_running_loop())
    rig.loop = ScrapeLoop(clock)
    held = asyncio.Event()

    async def slow(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(held.wait(), 10)
        writer.write(answer(PAGE))

    server = await rig.server(slow)
    rig.scrape(server.address, timeout=5)
    await eventually(lambda: server.paths)
    clock.ahead, clock.reads = 30.0, 0  # as after a pause of the process for half a minute
    await eventually(lambda: clock.reads >= 4)
    held.set()
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 1)
    assert rig.sink.failures == {}
    assert rig.sink.pages[server.address][0][2] >= 30


BAD: dict[str, tuple[Behaviour, str, str]] = {
    "hangs": (hang, "timeout", "no complete response within 0.3 s"),
    "drips": (drip, "timeout", "no complete response within 0.3 s"),
    "responds 500": (raw(answer(b"oops", "500 Internal Server Error")), "status", "HTTP 500"),
    "responds 404": (raw(answer(b"", "404 Not Found")), "status", "HTTP 404"),
    "responds 204": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "status", "HTTP 204"),
    "redirects": (raw(answer(b"", "301 Moved", "Location: /x\r\n")), "status", "HTTP 301: redirects to '/x' are not"),
    "has 100 MB": (raw(answer(b"", length=100_000_000)), "too_large", "100000000 bytes"),
    "sends 100 MB in chunks": (endless, "too_large", "over 4194304 bytes"),
    "cuts a line": (raw(answer(PAGE[:-5])), "truncated", "the last line has no end"),
    "breaks off": (break_off, "truncated", "before the 73198 bytes of its page"),
    "breaks off in chunks": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n# ab\n\r\n", close=True),
        "truncated",
        "before its last chunk",
    ),
    "is reset in its page": (reset, "reset", "the connection was closed after"),
    "responds 500 at length": (raw(answer(b"", "500 Oops", length=100_000_000)), "status", "HTTP 500"),
    "closes at once": (raw(close=True), "reset", "closed the connection before a response"),
    "is a web page": (
        raw(answer(b"<!DOCTYPE html>\n<html></html>\n")),
        "not_metrics",
        "is this the path of the metrics",
    ),
    "is another engine": (raw(answer(PAGE.replace(b"vllm:", b"sglang:"))), "wrong_engine", "a page of sglang"),
    "compresses": (
        raw(answer(gzip.compress(PAGE), headers="Content-Encoding: gzip\r\n")),
        "encoding",
        "the page is in gzip",
    ),
    "uses another protocol": (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "bad_http", "SSH-2.0"),
    "has an endless head": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 20_000), "bad_http", "over 16384 bytes"),
    "has two lengths": (
        raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"),
        "bad_http",
        "content-length",
    ),
    "has a bad chunk": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n"),
        "bad_http",
        "a chunk's size",
    ),
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_target_fails_with_its_reason_and_the_others_are_scraped(rig: LoopRig, case: str) -> None:
    behave, reason, part = BAD[case]
    bad, fine = await rig.server(behave), await rig.server()
    rig.scrape(bad.address, fine.address)
    await rig.sink.until(lambda: len(rig.sink.failures.get(bad.address, ())) >= 2)
    before = rig.sink.count(fine.address)
    await rig.sink.until(lambda: rig.sink.count(fine.address) > before)
    assert reason in REASONS
    for found, detail in rig.sink.failures[bad.address]:
        assert found == reason
        assert part in detail
    assert bad.address not in rig.sink.pages
    assert fine.address not in rig.sink.failures


async def test_a_target_without_a_listening_server_is_refused(rig: LoopRig, free_port: int) -> None:
    fine = await rig.server()
    address = f"127.0.0.1:{free_port}"
    rig.scrape(address, fine.address)
    await rig.sink.until(lambda: len(rig.sink.failures.get(address, ())) >= 2 and rig.sink.count(fine.address) > 2)
    assert {reason for reason, _ in rig.sink.failures[address]} == {"refused"}


@pytest.mark.parametrize(
    "pieces",
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"%x\r\n" % len(PAGE) + PAGE + b"\r\n0\r\n\r\n"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n",
            b"10;x=y\r\n" + PAGE[:16] + b"\r",
            b"\n%X\r\n" % (len(PAGE) - 16) + PAGE[16:],
            b"\r\n0\r\nTrailer: 1\r\n\r\n",
        ),
        PAGE_IN_PIECES,
        (b"HTTP/1.1 100 Continue\r\n\r\n", answer(PAGE)),
        (b"http", b""),
    ],
    ids=["one chunk", "odd chunks", "many pieces", "an interim response", "no HTTP"],
)
async def test_a_response_in_any_pieces_is_read(rig: LoopRig, pieces: tuple[bytes, ...]) -> None:
    server = await rig.server(raw(*pieces))
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 2 or bool(rig.sink.failures))
    if pieces[0] == b"http":
        assert rig.sink.failures[server.address][0][0] in ("bad_http", "timeout")
    else:
        assert rig.sink.pages[server.address][0][3] == len(PAGE)
        assert server.connections == 1


async def test_a_response_without_a_length_ends_with_its_connection(rig: LoopRig) -> None:
    server = await rig.server(raw(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE, close=True))
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 3)
    assert server.connections >= 3
    assert server.address not in rig.sink.failures


async def test_a_page_that_may_be_cut_between_two_lines_gives_no_partial_sum(rig: LoopRig) -> None:
    cut = PAGE.index(b"\n", PAGE.index(b"\nvllm:request_success_total") + 1) + 1
    server = await rig.server(raw(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE[:cut], close=True))
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 1)
    extraction = rig.sink.pages[server.address][0][0]
    assert extraction.readings[RUNNING] == 4
    assert FINISHED not in extraction.readings
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(FINISHED, "cut_off")]


async def test_a_page_with_a_value_of_nan_is_read_except_for_that_value(rig: LoopRig) -> None:
    line = b'vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} '
    server = await rig.server()
    server.page = PAGE.replace(line, line + b"NaN #").replace(b"NaN #0.797979797979798", b"NaN")
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 2)
    extraction = rig.sink.pages[server.address][-1][0]
    assert KV_USAGE not in extraction.readings
    assert [(refusal.signal, refusal.reason) for refusal in extraction.refused] == [(KV_USAGE, "not_finite")]
    assert extraction.readings[RUNNING] == 4
    assert not rig.sink.failures


async def test_more_bytes_than_announced_are_not_taken_for_the_next_response(rig: LoopRig) -> None:
    server = await rig.server(raw(answer(PAGE) + b"HTTP/1.1 500 Ha\r\n\r\n"))
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 3)
    assert not rig.sink.failures


async def test_a_server_that_closes_every_connection_is_not_scraped_without_pause(rig: LoopRig) -> None:
    interval = 0.2
    server = await rig.server(raw(answer(PAGE), close=True))
    rig.loop.set_targets("pool", [Target(server.address, "vllm", interval=interval, models_interval=1e9)], rig.sink)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 8)
    times = [at for _, at, _, _ in rig.sink.pages[server.address]]
    assert all(later - at > interval / 2 for at, later in zip(times, times[3:], strict=False))
    assert not rig.sink.failures


async def test_a_killed_server_is_scraped_at_once_and_not_when_its_next_scrape_is_due(rig: LoopRig) -> None:
    server = await rig.server()
    rig.loop.set_targets("pool", [Target(server.address, "vllm", interval=3600)], rig.sink)
    (scraper,) = rig.loop._scrapers.values()
    rig.loop.schedule(0.0, scraper)
    await rig.sink.until(lambda: rig.sink.count(server.address) == 1)
    await server.stop()
    await rig.sink.until(lambda: bool(rig.sink.failures))
    assert rig.sink.failures[server.address] == [("refused", f"connection refused by {server.address}")]


async def test_a_connection_that_was_closed_meanwhile_is_reopened_without_a_failure(rig: LoopRig) -> None:
    async def once(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if len(server.paths) % 2 == 0:
            writer.transport.abort()
        else:
            writer.write(answer(PAGE))

    server = await rig.server(once)
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 3)
    assert server.address not in rig.sink.failures


async def test_a_server_that_returns_is_scraped_again(rig: LoopRig) -> None:
    server = await rig.server()
    rig.scrape(server.address)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 1)
    port = server.port
    await server.stop()
    await rig.sink.until(lambda: len(rig.sink.failures.get(server.address, ())) >= 3)
    pages = rig.sink.count(server.address)
    await server.start(port)
    await rig.sink.until(lambda: rig.sink.count(server.address) > pages)
    failures = rig.sink.failures[server.address][:]
    assert {reason for reason, _ in failures} == {"refused"}
    await rig.sink.until(lambda: rig.sink.count(server.address) > pages + 2)
    assert rig.sink.failures[server.address] == failures


async def test_the_models_are_requested_on_the_connection_of_the_page(rig: LoopRig) -> None:
    server = await rig.server()
    rig.scrape(server.address, models=0.2)
    await rig.sink.until(lambda: server.paths.count("/v1/models") >= 2)
    assert rig.sink.models[server.address] == frozenset({"tiny", "lora-a"})
    assert server.connections == 1
    assert server.max_active == 1


async def test_the_models_of_a_server_that_closes_after_each_response_are_requested_too(rig: LoopRig) -> None:
    async def closing(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(MODELS if path == "/v1/models" else PAGE, headers="Connection: close\r\n"))
        writer.close()

    server = await rig.server(closing)
    rig.scrape(server.address, models=0.2)
    await rig.sink.until(lambda: server.address in rig.sink.models and rig.sink.count(server.address) >= 3)
    assert not rig.sink.failures


async def test_the_page_of_a_server_whose_models_hang_is_scraped(rig: LoopRig) -> None:
    async def half(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            await hang(server, path, writer)
        writer.write(answer(PAGE))

    server = await rig.server(half)
    rig.scrape(server.address, models=0.2)
    await rig.sink.until(lambda: server.paths.count("/v1/models") >= 2 and rig.sink.count(server.address) >= 4)
    assert not rig.sink.failures
    assert not rig.sink.models


async def test_the_models_of_a_server_that_returns_are_requested_at_once(rig: LoopRig) -> None:
    server = await rig.server()
    rig.scrape(server.address, models=3600)
    await rig.sink.until(lambda: server.address in rig.sink.models)
    port = server.port
    await server.stop()
    await rig.sink.until(lambda: bool(rig.sink.failures))
    rig.sink.models.clear()
    requested = server.paths.count("/v1/models")
    await server.start(port)
    await rig.sink.until(lambda: server.address in rig.sink.models)
    assert rig.sink.models[server.address] == {"tiny", "lora-a"}
    assert server.paths.count("/v1/models") == requested + 1


async def test_the_models_of_a_server_that_restarts_between_two_scrapes_are_requested_at_once(rig: LoopRig) -> None:
    server = await rig.server()
    rig.scrape(server.address, models=3600)
    await rig.sink.until(lambda: server.address in rig.sink.models)
    rig.sink.models.clear()
    rig.sink.restarted = lambda extraction: extraction.readings[RUNNING] == 7
    server.page = OTHER_PAGE
    await rig.sink.until(lambda: server.address in rig.sink.models)
    requested = [path for path in server.paths if path != "/health"]
    before = requested.index("/v1/models", requested.index("/v1/models") + 1)
    (first,) = [at for at, page in enumerate(rig.sink.pages[server.address]) if page[0].readings[RUNNING] == 7][:1]
    assert requested[:before].count("/metrics") == first + 1
    assert not rig.sink.failures


async def test_two_servers_behind_one_address_do_not_cause_a_request_for_models_with_every_page(rig: LoopRig) -> None:
    server = await rig.server()
    rig.sink.restarted = lambda _: True
    rig.scrape(server.address, models=3600)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 10)
    times = [at for _, at, _, _ in rig.sink.pages[server.address]]
    assert server.paths.count("/v1/models") <= 2 + (times[-1] - times[0]) / RESET_SECONDS


async def test_a_late_page_of_the_previous_server_at_an_address_is_dropped(rig: LoopRig) -> None:
    late = asyncio.Event()

    async def slow(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if server.paths.count("/metrics") == 1:
            await late.wait()
            writer.write(answer(PAGE))
        else:
            writer.write(answer(OTHER_PAGE))

    server = await rig.server(slow)
    old = Target(server.address, "vllm", interval=INTERVAL, timeout=20, health_path="", identity=Identity("pod-a"))
    rig.loop.set_targets("pool", [old], rig.sink)
    await eventually(lambda: "/metrics" in server.paths)
    rig.loop.set_targets("pool", [old._replace(identity=Identity("pod-b"))], rig.sink)
    late.set()
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 2)
    assert {page[0].readings[RUNNING] for page in rig.sink.pages[server.address]} == {7}
    assert server.connections == 2


async def test_a_missing_list_of_models_is_not_a_failed_scrape(rig: LoopRig) -> None:
    async def no_models(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(b"{}", "404 Not Found") if path == "/v1/models" else answer(PAGE))

    server = await rig.server(no_models)
    rig.scrape(server.address, models=0.0)
    await rig.sink.until(lambda: rig.sink.count(server.address) >= 3)
    assert server.address not in rig.sink.failures
    assert server.address not in rig.sink.models


async def test_targets_that_stay_keep_their_connection_and_removed_ones_are_not_scraped(rig: LoopRig) -> None:
    stays, goes, comes = await rig.server(), await rig.server(), await rig.server()
    rig.scrape(stays.address, goes.address)
    await rig.sink.until(lambda: rig.sink.count(stays.address) > 1 and rig.sink.count(goes.address) > 1)
    rig.scrape(stays.address, comes.address)
    requested = len(goes.paths)
    before = rig.sink.count(stays.address)
    await rig.sink.until(lambda: rig.sink.count(comes.address) > 2 and rig.sink.count(stays.address) > before + 2)
    assert stays.connections == 1
    assert len(goes.paths) == requested
    assert not goes.writers


class Defective:
    """Is due, and raises."""

    def __init__(self) -> None:
        self.due_at = 0.0
        self.early = 0.0
        self.stopped = False
        self.tries = 0

    def on_due(self, now: float) -> None:
        self.tries += 1
        raise ZeroDivisionError


async def test_a_scrape_that_raises_is_reported_and_retried_and_stops_no_other() -> None:
    defects: list[Exception] = []
    server, sink, defective = ModelServer(), RecordingSink(), Defective()
    loop = ScrapeLoop(LoopClock(asyncio.get_running_loop()), defects.append)
    await server.start()
    try:
        loop.schedule(loop.now, defective)
        loop.set_targets("pool", [Target(server.address, "vllm", interval=INTERVAL)], sink)
        await eventually(lambda: defective.tries >= 3)
        assert list(map(type, defects)) == [ZeroDivisionError] * defective.tries
        seen = sink.count(server.address)
        await sink.until(lambda: sink.count(server.address) >= seen + 2)
    finally:
        await loop.stop()
        await server.stop()


async def test_after_stop_there_are_no_requests_and_no_connections() -> None:
    server, sink = ModelServer(), RecordingSink()
    loop = ScrapeLoop(LoopClock(asyncio.get_running_loop()))
    await server.start()
    try:
        loop.set_targets("pool", [Target(server.address, "vllm", interval=INTERVAL)], sink)
        await sink.until(lambda: sink.count(server.address) >= 2)
        await loop.stop()
        requested = len(server.paths)
        await eventually(lambda: not server.writers)
        assert len(server.paths) == requested
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"data":[{"id":"a"},{"id":"b"}]}', frozenset({"a", "b"})),
        (b'{"data":[]}', frozenset()),
        (b'{"data":[{"id":7},{"name":"x"},3]}', frozenset()),
        (b'{"data":{}}', None),
        (b"[]", None),
        (b"not JSON", None),
        (b"", None),
    ],
)
def test_a_list_of_models_is_parsed_or_none(body: bytes, names: frozenset[str] | None) -> None:
    assert model_names(body) == names


@pytest.mark.parametrize(
    ("entries", "roots"),
    [
        ([{"id": "tiny", "root": "/models/a", "parent": None}], {"tiny": "/models/a"}),
        ([{"id": "tiny", "root": "/a"}, {"id": "lora", "root": "/l", "parent": "tiny"}], {"tiny": "/a"}),
        ([{"id": "tiny"}, {"root": "/a"}, 7, {"id": 7, "root": "/a"}, {"id": "x", "root": 7}], {}),
    ],
)
def test_the_place_of_a_models_weights_is_its_root_and_adapters_have_none(entries: object, roots: object) -> None:
    body = orjson.dumps({"data": entries})
    assert model_names(body) is not None
    assert model_roots(body) == roots


class LineCounter:
    """Reader and sink of an exporter: the content of a page is its number of lines; one without lines is refused."""

    def __init__(self) -> None:
        self.lines: list[int] = []
        self.failures: list[str] = []

    def extract(self, page: bytes, *, whole: bool = False) -> int:
        if b"\n" not in page:
            raise PageRefused("not_metrics", "no line")
        return page.count(b"\n")

    def observed(self, address: str, extraction: int, at: float, took: float, size: int) -> bool:
        self.lines.append(extraction)
        return False

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        self.failures.append(reason)


async def test_only_the_page_of_an_exporter_is_requested_and_it_has_its_own_reader_and_sink(rig: LoopRig) -> None:
    server, exporter = await rig.server(), LineCounter()
    target = Target(server.address, "", path="/exporter", interval=INTERVAL)
    rig.loop.set_exporters("exporters", [target], exporter, lambda _: exporter)
    rig.scrape(server.address)
    await eventually(lambda: len(exporter.lines) > 2 and rig.sink.count(server.address) > 2)
    assert set(exporter.lines) == {PAGE.count(b"\n")}
    assert set(server.paths) == {"/exporter", "/metrics", "/v1/models"}
    server.page = b"# EOF"
    await eventually(lambda: exporter.failures != [])
    assert set(exporter.failures) == {"not_metrics"}
    rig.loop.set_exporters("exporters", [], exporter, lambda _: exporter)
    assert [key for key in rig.loop._scrapers if key[0] == "exporters"] == []
