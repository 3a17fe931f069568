"""The table of bad input: what happens, and what each exit then says. `docs/bad-input.md` shows the same table."""

from __future__ import annotations

import asyncio
import gzip
import re
from collections.abc import Awaitable, Callable

from agent.exposition.page import MAX_SERIES
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    FINISHED,
    GENERATION_TOKENS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    LORA_WAITING,
    PREFILL_SECONDS,
    PREFILLS,
    RUNNING,
    WAITING,
)
from tests.scrape.model_server import (
    Behaviour,
    ModelServer,
    answer,
    break_off,
    drip,
    good,
    hang,
    raw,
    reset,
)
from tests.spec.around import EXPORTERS, REACHING
from tests.spec.row import AT_FIRST_WORD, AT_ONCE, AT_STALE, AT_THIRD, AT_THIRD_QUESTION, AT_THIRD_WORD, Row
from tests.spec.story import PAGE, Seen, Story
from tests.spec.words import (
    ALL_REFUSED,
    DOWN,
    GAUGES,
    HEALTHY,
    LEFT_OUT,
    NO_POOL,
    PICKED,
    TOLD,
    Expected,
    absent,
    counted,
    failed,
    lacking,
    missing,
    new_server,
    published,
    refused,
    samples,
    unhealthy,
    unwell,
    wall_clock,
    withheld,
    without,
)


def _at(place: str, behave: Behaviour) -> Behaviour:
    """This at one path, all well at the others."""

    async def both(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await (behave if path == place else good)(server, path, writer)

    return both


def _down(
    fault: str, what: str, reason: str, behave: Behaviour | None, *, since: str = AT_THIRD, more: str = "",
    endpoints: int = 2,
) -> Row:  # fmt: skip
    """A fault that takes the endpoint down. `more`: how its health path fails too; where it does not, it answers."""
    said = "health_only" if reason in ("timeout", "reset") and not more else reason

    async def do(story: Story) -> Seen:
        await story.bad.turn(behave if more or behave is None else _at("/metrics", behave))
        if since == AT_ONCE:
            await story.failures(1)
            return await story.look()
        # A server that answers nothing fails its third question when its page fails for the second time.
        early_failures = 1 if more else 2
        await story.failures(early_failures)
        early = await story.look()
        await story.failures(3 - early_failures)
        await story.until("down", said)
        return early

    state = unhealthy("down", said)
    return Row(
        fault, what, do, AT_THIRD_QUESTION if more else since, LEFT_OUT, state, withheld("down"), absent("down", 0.5),
        (failed(reason), DOWN, *([unwell(more)] if more else [])), endpoints,
    )  # fmt: skip


def _unwell(fault: str, what: str, reason: str, behave: Behaviour, since: str = AT_FIRST_WORD) -> Row:
    """A health path that fails while the page comes."""

    async def do(story: Story) -> Seen:
        await story.bad.turn(_at("/health", behave))
        early = None
        if since == AT_THIRD_WORD:
            await story.unwell(2)
            early = await story.look()
        await story.unwell(1)
        await story.until("down", reason)
        return early or await story.look()

    return Row(
        fault, what, do, since, LEFT_OUT, unhealthy("down", reason), withheld("down"), absent("down", 0.5),
        (unwell(reason), DOWN),
    )  # fmt: skip


def _value(fault: str, what: str, signal: str, reason: str, change: Callable[[bytes], bytes]) -> Row:
    """A page that is good but for one signal."""
    count = (
        counted("igw_scrape_missing_signals_total", signal=signal) if reason == "missing" else refused(signal, reason)
    )

    async def do(story: Story) -> Seen:
        page = change(PAGE)
        assert page != PAGE
        story.bad.page = page
        await story.turn()
        early = await story.look()
        await story.grow_stale()
        return early

    gauges, metrics = published(TOLD), samples(TOLD)
    if signal in GAUGES:
        gauges, metrics = withheld("stale", signal), lacking(signal)
    return Row(fault, what, do, AT_STALE, PICKED, without(signal), gauges, metrics, (count,))


def _harmless(fault: str, what: str, do: Callable[[Story], Awaitable[Seen]], state: Expected = HEALTHY) -> Row:
    """Something that changes nothing."""
    return Row(fault, what, do, AT_ONCE, PICKED, state, published(TOLD), samples(TOLD), ())


def _answers(behave: Behaviour) -> Callable[[Story], Awaitable[Seen]]:
    async def do(story: Story) -> Seen:
        await story.bad.turn(_at("/metrics", behave))
        await story.turn()
        return await story.look()

    return do


def _restarts(fault: str, what: str, reason: str, change: Callable[[bytes], bytes], lacks: tuple[str, ...] = ()) -> Row:
    """A new server under the old address."""
    told = {signal: value for signal, value in _NEW.items() if signal not in lacks}

    async def do(story: Story) -> Seen:
        story.bad.page = change(_set(PAGE, **_NEW_SAMPLES))
        await story.turn()
        await story.models()
        return await story.look()

    return Row(
        fault, what, do, AT_ONCE, PICKED, new_server(told, lacks), published(told), samples(told),
        (counted("igw_server_restarts_total", reason=reason),
         *map(missing, lacks)),
    )  # fmt: skip


# -- pages -----------------------------------------------------------------------------------------------------------


def _set(page: bytes, **values: str) -> bytes:
    """The page with other values of these samples (`__` stands for `:`)."""
    for name, value in values.items():
        sample = re.escape(name.replace("__", ":").encode())
        page, found = re.subn(
            rb"^(" + sample + rb"(?:\{.*\})?) .*$", rb"\g<1> " + value.encode(), page, flags=re.MULTILINE
        )
        assert found, name
    return page


def _value_of(name: str, value: str) -> Callable[[bytes], bytes]:
    return lambda page: _set(page, **{name: value})


def _line(name: bytes) -> bytes:
    found = re.search(rb"^" + name + rb"\{.*\n", PAGE, re.MULTILINE)
    assert found
    return found[0]


_NEW_SAMPLES = {
    "vllm__num_requests_running": "1.0",
    "vllm__num_requests_waiting": "2.0",
    "vllm__kv_cache_usage_perc": "0.25",
    "vllm__generation_tokens_total": "7.0",
    "vllm__prefix_cache_queries_total": "64.0",
    "vllm__prefix_cache_hits_total": "0.0",
    "process_start_time_seconds": "1.79534999e+09",
}
_NEW = {RUNNING: 1.0, WAITING: 2.0, KV_USAGE: 0.25, GENERATION_TOKENS: 7.0}
_KV = "vllm__kv_cache_usage_perc"
_KV_LINE = _line(b"vllm:kv_cache_usage_perc")
_RUNNING_LINE = _line(b"vllm:num_requests_running")
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_FINISHED_AT = PAGE.index(b"\n", PAGE.index(b"\nvllm:request_success_total") + 1) + 1
_BEHIND_THE_CUT = (
    PREFILL_SECONDS, PREFILLS, BLOCK_SIZE, BLOCKS, LORA_MAX, LORA_RUNNING, LORA_WAITING,
)  # fmt: skip


_ODDLY_SPACED = re.sub(rb"(?m)^(vllm:\w+)(\{.*\}) (.*)$", rb" \1 \2\t\3 1795344417330 # {a=\"b\"} 1", PAGE)


_STAMPED = re.sub(rb"(?m)^(vllm:.*|process_start_time.*)$", rb"\1 1795344417330", PAGE)


def _without_start(page: bytes) -> bytes:
    return re.sub(rb"^process_start_time_seconds .*\n", b"", page, flags=re.MULTILINE)


# -- stories of more than one step ------------------------------------------------------------------------------------


async def _dripping(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """A byte of the page for each byte that went out: it never ends within any time."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 73198\r\n\r\n")
    for place in range(40):
        writer.write(PAGE[place : place + 1])
        await writer.drain()
    await hang(server, path, writer)


def _gigabyte(head: bytes, before: bytes = b"", behind: bytes = b"") -> Behaviour:
    """A gigabyte in pieces, each with something before and behind it, as far as anybody reads."""

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for _ in range((1 << 30) // len(PAGE) + 1):
            writer.write(before + PAGE + behind)
            await writer.drain()

    return behave


def _cut_between_lines(story: Story) -> Awaitable[Seen]:
    return _stale_after(story, raw(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE[:_FINISHED_AT], close=True))


async def _stale_after(story: Story, behave: Behaviour) -> Seen:
    await story.bad.turn(_at("/metrics", behave))
    await story.turn()
    early = await story.look()
    await story.grow_stale()
    return early


async def _restarts_without_start(story: Story) -> Seen:
    story.bad.page = _without_start(PAGE)
    await story.grow_stale()
    story.bad.page = _without_start(_set(PAGE, **_NEW_SAMPLES))
    await story.turn()
    await story.models()
    return await story.look()


async def _comes_back_new(story: Story) -> Seen:
    await story.bad.turn(None)
    await story.failures(1)
    early = await story.look()
    await story.bad.turn(None)
    story.bad.page = _set(PAGE, **_NEW_SAMPLES)
    await story.bad.turn(good)
    await story.turn()
    await story.models()
    return early


async def _comes_back_loading(story: Story) -> Seen:
    await story.bad.turn(None)
    await story.failures(1)
    early = await story.look()
    story.bad.page = _set(PAGE, **_NEW_SAMPLES)
    await story.bad.turn(_at("/health", raw(answer(b"", "503 Service Unavailable"))))
    await story.unwell(1)
    await story.until("down", "loading")
    return early


def _wall(seconds: float) -> Callable[[Story], Awaitable[Seen]]:
    async def do(story: Story) -> Seen:
        story.clock.set_wall(seconds)
        await story.turn()
        return await story.look()

    return do


async def _repeats(story: Story) -> Seen:
    """The same time stamps on each page: whoever writes it has not measured since."""
    story.bad.page = _STAMPED
    await story.turn()
    early = await story.look()
    await story.grow_stale()
    return early


async def _models_gone(story: Story) -> Seen:
    await story.bad.turn(_at("/v1/models", raw(answer(b"<html>", "500 Oops"))))
    await story.turn()
    return await story.look()


async def _half_are_silent(story: Story) -> Seen:
    other = story.good.pop()
    for server in (story.bad, other):
        await server.turn(hang)
    await story.failures(1)
    early = await story.look()
    await story.failures(2)
    await story.flow(lambda: len(story.live.healthy()) == 2)
    return early


async def _all_are_silent(story: Story) -> Seen:
    others = list(story.good)
    story.good.clear()
    for server in (story.bad, *others):
        await server.turn(hang)
    await story.failures(1)
    early = await story.look()
    await story.failures(2)
    await story.flow(lambda: not story.live.healthy())
    return early


TABLE: tuple[Row, ...] = (
    # -- no answer ---------------------------------------------------------------------------------------------------
    _down("target down", "Nobody listens at the address: the server was killed.", "refused", None, since=AT_ONCE),
    _down("hang", "It takes the connection and the request, and says nothing.", "timeout", hang,
          more="health_timeout"),
    _down("hang-up", "It closes each connection instead of an answer.", "reset", raw(close=True), more="health_broken"),
    _down("no page", "Its health path answers, and its page hangs.", "timeout", hang),
    _down("hang in the page", "It sends the head of its page, and nothing more.", "timeout", drip),
    _down("slow drip", "It sends its page byte by byte; the time-out is for the whole.", "timeout", _dripping),
    _down("reset", "The connection is reset in the middle of the page.", "reset", reset),
    # -- an answer that is none --------------------------------------------------------------------------------------
    _down("status 500", "It answers 500.", "status", raw(answer(b"oops", "500 Internal Server Error"))),
    _down("status 404", "There is no such path.", "status", raw(answer(b"", "404 Not Found"))),
    _down("status 401", "It wants credentials.", "status", raw(answer(b"", "401 Unauthorized"))),
    _down("status 204", "It answers 204, without a page.", "status", raw(b"HTTP/1.1 204 No Content\r\n\r\n")),
    _down("redirect", "It sends the agent elsewhere.", "status", raw(answer(b"", "302 Found", "Location: /x\r\n"))),
    _down("500 at length", "It answers 500 and announces 1 GB of it.", "status",
          raw(answer(b"", "500 Oops", length=1 << 30))),
    _down("not HTTP", "Something else listens there (SSH).", "bad_http", raw(b"SSH-2.0-OpenSSH_9.2\r\n")),
    _down("endless head", "The head of the answer never ends.", "bad_http",
          raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000)),
    _down("two lengths", "The head gives two different lengths.", "bad_http",
          raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")),
    _down("length that is no number", "The head gives a length of `-1`.", "bad_http",
          raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")),
    _down("chunks wrong", "The size of a chunk is no number.", "bad_http", raw(_CHUNKED + b"zz\r\nhello\r\n")),
    _down("chunk too long", "A chunk is longer than it says.", "bad_http", raw(_CHUNKED + b"3\r\nhello\r\n")),
    # -- a way that is none ------------------------------------------------------------------------------------------
    *REACHING,
    # -- a page that is none -----------------------------------------------------------------------------------------
    _down("empty page", "The page has no bytes.", "empty", raw(answer(b""))),
    _down("blank page", "The page is a line end.", "not_metrics", raw(answer(b"\n"))),
    _down("HTML", "The page is HTML, to log in.", "not_metrics",
          raw(answer(b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n"))),
    _down("JSON", "The page is JSON.", "not_metrics", raw(answer(b'{"status":"ok"}\n'))),
    _down("binary", "There are zero bytes in the page.", "not_metrics", raw(answer(PAGE.replace(b"tiny", b"\0", 1)))),
    _down("gzip unasked", "The page is compressed, and no compression was asked for.", "encoding",
          raw(answer(gzip.compress(PAGE), headers="Content-Encoding: gzip\r\n"))),
    _down("gzip untold", "The page is compressed, and the head does not say so.", "not_metrics",
          raw(answer(gzip.compress(PAGE)))),
    _down("wrong engine", "The page is SGLang's.", "wrong_engine", raw(answer(PAGE.replace(b"vllm:", b"sglang:")))),
    _down("no engine", "The page is of a program that is no model server.", "wrong_engine",
          raw(answer(re.sub(rb"(?m)^.*vllm:.*\n", b"", PAGE)))),
    # -- a page that is too large ------------------------------------------------------------------------------------
    _down("1 GB announced", "The head announces 1 GB.", "too_large", raw(answer(PAGE, length=1 << 30))),
    _down("1 GB in chunks", "It sends 1 GB in chunks, as far as anybody reads.", "too_large",
          _gigabyte(_CHUNKED, b"%x\r\n" % len(PAGE), b"\r\n")),
    _down("1 GB without a length", "It sends 1 GB until the connection ends.", "too_large",
          _gigabyte(b"HTTP/1.0 200 OK\r\n\r\n")),
    _down("too many series", "The page has over 10,000 series of the wanted names.", "too_large",
          raw(answer(PAGE + b"".join(b'vllm:num_requests_running{engine="%d"} 1\n' % number
                                     for number in range(1, MAX_SERIES))))),
    # -- a page that is cut ------------------------------------------------------------------------------------------
    _down("page cut on the way", "The connection ends before the announced end.", "truncated", break_off),
    _down("page cut in a line", "The page is whole for HTTP and ends in the middle of a line.", "truncated",
          raw(answer(PAGE[:-5]))),
    _down("chunks cut", "The connection ends before the last chunk.", "truncated",
          raw(_CHUNKED + b"5\r\n# ab\n\r\n", close=True)),
    Row(
        "page cut between lines", "An answer without a length ends within a group of lines that belong together.",
        _cut_between_lines, AT_STALE, PICKED, without(FINISHED), withheld("stale", FINISHED), lacking(FINISHED),
        (refused(FINISHED, "cut_off"), *map(missing, _BEHIND_THE_CUT)),
    ),
    # -- values that cannot be true ----------------------------------------------------------------------------------
    _value("NaN", "The KV usage is `NaN`.", KV_USAGE, "not_finite", _value_of(_KV, "NaN")),
    _value("+Inf", "The KV usage is `+Inf`.", KV_USAGE, "not_finite", _value_of(_KV, "+Inf")),
    _value("-Inf", "The KV usage is `-Inf`.", KV_USAGE, "not_finite", _value_of(_KV, "-Inf")),
    _value("overflow", "The KV usage is `1e999`.", KV_USAGE, "not_finite", _value_of(_KV, "1e999")),
    _value("negative", "The KV usage is -0.5.", KV_USAGE, "out_of_range", _value_of(_KV, "-0.5")),
    _value("over its range", "The KV usage is 79.8: percent.", KV_USAGE, "out_of_range", _value_of(_KV, "79.8")),
    _value("no number", "The KV usage is `many`.", KV_USAGE, "bad_line", _value_of(_KV, "many")),
    _value("a number to Python alone", "The KV usage is `0_5`.", KV_USAGE, "bad_line", _value_of(_KV, "0_5")),
    _value("no value", "The line of the KV usage ends behind its labels.", KV_USAGE, "bad_line", _value_of(_KV, "")),
    _value("quote never closed", "A label of the KV usage has no end.", KV_USAGE, "bad_line",
           lambda page: page.replace(_KV_LINE, _KV_LINE.replace(b'"}', b"}"))),
    _value("duplicate series", "The series of the KV usage stands on the page twice.", KV_USAGE, "duplicate_series",
           lambda page: page + _KV_LINE),
    _value("one bad series of two", "Of two engines' queues one is `NaN`.", WAITING, "not_finite",
           lambda page: page + b'vllm:num_requests_waiting{engine="1",model_name="tiny"} NaN\n'),
    _value("engines that disagree", "Two engines of one server tell different block sizes.", BLOCK_SIZE, "disagreement",
           lambda page: page + b'vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="100"} 1\n'),
    _value("signal gone", "The page has no KV usage any more.", KV_USAGE, "missing",
           lambda page: page.replace(_KV_LINE, b"")),
    # -- a new server ------------------------------------------------------------------------------------------------
    _restarts("restart", "A new process answers between two scrapes.", "new_start_time", lambda page: page),
    _restarts("restart to a shorter page", "A new process answers, and does not tell its KV usage yet.",
              "new_start_time", lambda page: page.replace(_set(_KV_LINE, **{_KV: "0.25"}), b""), (KV_USAGE,)),
    Row(
        "restart that does not say so", "The page has no start time, and its counters go back.",
        _restarts_without_start, AT_ONCE, PICKED, new_server(_NEW), published(_NEW), samples(_NEW),
        (counted("igw_server_restarts_total", reason="counter_went_back"),
         missing("start_time_seconds")),
    ),
    Row(
        "restart with an outage", "The server is down for a scrape, and a new one comes.",
        _comes_back_new, AT_ONCE, PICKED, new_server(_NEW), published(_NEW), samples(_NEW),
        (failed("refused"), DOWN, counted("igw_health_changes_total", state="healthy"),
         counted("igw_server_restarts_total", reason="new_start_time")),
    ),
    # -- time --------------------------------------------------------------------------------------------------------
    _harmless("wall clock forwards", "Somebody sets the wall clock an hour ahead.", _wall(3600), wall_clock(3600)),
    _harmless("wall clock back", "Somebody sets the wall clock back by an hour.", _wall(-3600), wall_clock(-3600)),
    Row(
        "samples that repeat", "All its samples carry time stamps, and those of the page before.", _repeats, AT_STALE,
        LEFT_OUT, unhealthy("stale", "no_fresh_page"), withheld("stale"), absent("stale", 0.5),
        (counted("igw_health_changes_total", state="stale"),),
    ),
    # -- the health path ---------------------------------------------------------------------------------------------
    _unwell("health path says no", "It answers 503: its engine is dead, or it is leaving.", "health_unavailable",
            raw(answer(b"", "503 Service Unavailable"))),
    _unwell("health path fails", "It answers 500.", "health_status", raw(answer(b"", "500 Internal Server Error"))),
    _unwell("no health path", "It answers 404: the configuration names a wrong path.", "health_not_found",
            raw(answer(b"", "404 Not Found"))),
    _unwell("health path hangs", "It says nothing, and the page comes.", "health_timeout", hang, AT_THIRD_WORD),
    _unwell("health path breaks", "It closes the connection, and the page comes.", "health_broken", raw(close=True),
            AT_THIRD_WORD),
    Row(
        "a new server that is loading", "The server was down; its page is back, and its health path says 503.",
        _comes_back_loading, AT_FIRST_WORD, LEFT_OUT, unhealthy("down", "loading"), withheld("down"),
        absent("down", 0.5),
        (failed("refused"), DOWN, unwell("loading"), counted("igw_server_restarts_total", reason="new_start_time")),
    ),
    # -- the exporter of the accelerators ----------------------------------------------------------------------------
    *EXPORTERS,
    # -- many at a time ----------------------------------------------------------------------------------------------
    _down("half of the fleet silent", "Two of four endpoints hang.", "timeout", hang,
          more="health_timeout", endpoints=4)._replace(
        do=_half_are_silent),
    Row(
        "the whole fleet silent", "Every endpoint hangs.", _all_are_silent, AT_THIRD_QUESTION, ALL_REFUSED,
        unhealthy("down", "timeout"), NO_POOL, absent("down", 0.0),
        (failed("timeout"), DOWN, unwell("health_timeout"),
         counted("igw_requests_rejected_total", status="503", reason="none_healthy")),
    ),
    # -- odd, and right ----------------------------------------------------------------------------------------------
    _harmless("more than announced", "Bytes follow the announced end of the answer.",
              _answers(raw(answer(PAGE) + b"HTTP/1.1 500 Ha\r\n\r\n"))),
    _harmless("an answer before the answer", "`100 Continue` comes first.",
              _answers(raw(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(PAGE)))),
    _harmless("closes after each answer", "Every answer ends with its connection.",
              _answers(raw(answer(PAGE, headers="Connection: close\r\n"), close=True))),
    _harmless("one byte at a time", "The page comes in many small pieces.",
              _answers(raw(*(answer(PAGE)[at : at + 997] for at in range(0, len(PAGE) + 100, 997))))),
    _harmless("line ends of Windows", "Lines end with CR and LF.",
              _answers(raw(answer(PAGE.replace(b"\n", b"\r\n"))))),
    _harmless("spaces, stamps, exemplars", "Lines are indented and carry time stamps and exemplars.",
              _answers(raw(answer(_ODDLY_SPACED)))),
    _harmless("bad lines that nobody wants", "Lines of other names cannot be read.",
              _answers(raw(answer(b"other{x=1} nothing\n" + PAGE + b"}{\nother 1 2 3\n")))),
    _harmless("list of models gone", "`/v1/models` answers 500.", _models_gone),
)  # fmt: skip
