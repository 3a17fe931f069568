"""The fault table: each row has a fault and what each output of the agent then has. bad-input.md shows it too.

docs/reference/bad-input.md shows the same table.
`tests/spec/test_bad_input.py` runs every row at a real agent and checks each cell in a test of its own.
"""

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
    FIRST_TOKEN_WAIT,
    FIRST_TOKENS,
    GENERATION_TOKENS,
    KV_TOKENS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    LORA_WAITING,
    PREFILL_SECONDS,
    PREFILLED_TOKENS,
    PREFILLS,
    RUNNING,
    WAITING,
)
from tests.fakes.model_server import (
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
from tests.spec.environment_rows import CONNECTION_ROWS, EXPORTER_ROWS
from tests.spec.expectations import (
    ALL_REFUSED,
    BLIND,
    DOWN,
    GAUGES,
    HEALTHY,
    LEFT_OUT,
    PAGE_VALUES,
    PICKED,
    SERVED,
    Expected,
    absent,
    blind,
    counted,
    failed,
    health_failed,
    lacking,
    loaded_by_others,
    missing,
    new_server,
    no_pool,
    published,
    refused,
    samples,
    unhealthy,
    wall_clock,
    withheld,
    without,
)
from tests.spec.fault_row import (
    AT_FIRST_PROBE,
    AT_ONCE,
    AT_STALE,
    AT_THIRD,
    AT_THIRD_HEALTH,
    AT_THIRD_PROBE,
    FaultRow,
)
from tests.spec.scenario import PAGE, Outputs, Scenario


def _at(faulty_path: str, behave: Behaviour) -> Behaviour:
    """Behave like this at one path and well at the others."""

    async def both(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        await (behave if path == faulty_path else good)(server, path, writer)

    return both


def _down(
    fault: str, what: str, reason: str, behave: Behaviour | None, *, since: str = AT_THIRD_PROBE, more: str = "",
    endpoints: int = 2,
) -> FaultRow:  # fmt: skip
    """A fault that takes the endpoint down; `more` is the failure of its health path."""

    async def inject(scenario: Scenario) -> Outputs:
        await scenario.bad.switch(behave)
        await scenario.fail_scrapes(1)
        early = await scenario.read_outputs()
        if since != AT_ONCE:  # a server without any answer fails its third probe with the second scrape
            await scenario.fail_scrapes(2)
        await scenario.until("down", reason)
        return early

    return FaultRow(
        fault, what, inject, since, LEFT_OUT, unhealthy("down", reason), withheld("down"), absent("down", 0.5),
        (failed(reason), DOWN, *([health_failed(more)] if more else [])), endpoints,
    )  # fmt: skip


def _blind(fault: str, what: str, reason: str, behave: Behaviour) -> FaultRow:
    """A page that cannot be used beside a health path that succeeds."""

    async def inject(scenario: Scenario) -> Outputs:
        await scenario.bad.switch(_at("/metrics", behave))
        await scenario.fail_scrapes(2)
        early = await scenario.read_outputs()
        await scenario.fail_scrapes(1)
        await scenario.until("blind", reason)
        return early

    return FaultRow(
        fault, what, inject, AT_THIRD, PICKED, blind(reason), withheld("blind"), absent("blind", 0.5),
        (failed(reason), BLIND),
    )  # fmt: skip


def _nothing_counted(fault: str, what: str, page: bytes) -> FaultRow:
    """A page without a sample."""

    async def inject(scenario: Scenario) -> Outputs:
        return await _stale_after(scenario, raw(answer(page)))

    return FaultRow(
        fault, what, inject, AT_STALE, PICKED, without(*PAGE_VALUES), withheld("stale", *PAGE_VALUES),
        lacking(*PAGE_VALUES), (),
    )  # fmt: skip


def _health(fault: str, what: str, reason: str, behave: Behaviour, since: str = AT_FIRST_PROBE) -> FaultRow:
    """A health path that fails while the page is served."""

    async def inject(scenario: Scenario) -> Outputs:
        await scenario.bad.switch(_at("/health", behave))
        early = None
        if since == AT_THIRD_HEALTH:
            await scenario.fail_health_probes(2)
            early = await scenario.read_outputs()
        await scenario.fail_health_probes(1)
        await scenario.until("down", reason)
        return early or await scenario.read_outputs()

    return FaultRow(
        fault, what, inject, since, LEFT_OUT, unhealthy("down", reason), withheld("down"), absent("down", 0.5),
        (health_failed(reason), DOWN),
    )  # fmt: skip


def _value(fault: str, what: str, signal: str, reason: str, change: Callable[[bytes], bytes]) -> FaultRow:
    """A page that is valid except for one signal."""
    count = (
        counted("igw_scrape_missing_signals_total", signal=signal) if reason == "missing" else refused(signal, reason)
    )

    async def inject(scenario: Scenario) -> Outputs:
        page = change(PAGE)
        assert page != PAGE
        scenario.bad.page = page
        await scenario.scrape_round()
        early = await scenario.read_outputs()
        await scenario.pass_stale_after()
        return early

    gauges, metrics = published(PAGE_VALUES), samples(PAGE_VALUES)
    if signal in GAUGES:
        gauges, metrics = withheld("stale", signal), lacking(signal)
    return FaultRow(fault, what, inject, AT_STALE, PICKED, without(signal), gauges, metrics, (count,))


def _harmless(
    fault: str, what: str, inject: Callable[[Scenario], Awaitable[Outputs]], state: Expected = HEALTHY
) -> FaultRow:
    """An unusual response without any effect."""
    return FaultRow(fault, what, inject, AT_ONCE, PICKED, state, published(PAGE_VALUES), samples(PAGE_VALUES), ())


def _answers(behave: Behaviour) -> Callable[[Scenario], Awaitable[Outputs]]:
    async def inject(scenario: Scenario) -> Outputs:
        await scenario.bad.switch(_at("/metrics", behave))
        await scenario.scrape_round()
        return await scenario.read_outputs()

    return inject


def _restarts(
    fault: str, what: str, reason: str, change: Callable[[bytes], bytes], lacks: tuple[str, ...] = ()
) -> FaultRow:
    """A new server at the same address."""
    values = {signal: value for signal, value in _NEW.items() if signal not in lacks}

    async def inject(scenario: Scenario) -> Outputs:
        scenario.bad.page = change(_set(PAGE, **_NEW_SAMPLES))
        await scenario.scrape_round()
        await scenario.models()
        return await scenario.read_outputs()

    return FaultRow(
        fault, what, inject, AT_ONCE, PICKED, new_server(values, lacks), published(values), samples(values),
        (counted("igw_server_restarts_total", reason=reason),
         *map(missing, lacks)),
    )  # fmt: skip


# -- pages -----------------------------------------------------------------------------------------------------------


def _set(page: bytes, **values: str) -> bytes:
    """The page with other values of these samples (`__` in a name is `:`)."""
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


# About the load of the server before, so that it is picked as often as the good ones.
_NEW_SAMPLES = {
    "vllm__num_requests_running": "5.0",
    "vllm__num_requests_waiting": "2.0",
    "vllm__kv_cache_usage_perc": "0.25",
    "vllm__generation_tokens_total": "7.0",
    "vllm__prefix_cache_queries_total": "64.0",
    "vllm__prefix_cache_hits_total": "0.0",
    "process_start_time_seconds": "1.79534999e+09",
}
_NEW = {RUNNING: 5.0, WAITING: 2.0, KV_USAGE: 0.25, GENERATION_TOKENS: 7.0}
_OTHERS = {**PAGE_VALUES, WAITING: 64.0}
_KV = "vllm__kv_cache_usage_perc"
_KV_LINE = _line(b"vllm:kv_cache_usage_perc")
_KV_VALUE = _KV_LINE.split()[1]
_OF_PROCESSES = b"".join(
    _KV_LINE.replace(b"{", b'{pid="%d",' % pid).replace(_KV_VALUE, _KV_VALUE if pid == 3 else b"0.0")
    for pid in range(8)
)
_RUNNING_LINE = _line(b"vllm:num_requests_running")
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
_FINISHED_AT = PAGE.index(b"\n", PAGE.index(b"\nvllm:request_success_total") + 1) + 1
_AFTER_THE_CUT = (
    PREFILL_SECONDS, PREFILLS, PREFILLED_TOKENS, FIRST_TOKENS, FIRST_TOKEN_WAIT,
    BLOCK_SIZE, BLOCKS, KV_TOKENS, LORA_MAX, LORA_RUNNING, LORA_WAITING,
)  # fmt: skip


_ODDLY_SPACED = re.sub(rb"(?m)^(vllm:\w+)(\{.*\}) (.*)$", rb" \1 \2\t\3 1795344417330 # {a=\"b\"} 1", PAGE)


_STAMPED = re.sub(rb"(?m)^(vllm:.*|process_start_time.*)$", rb"\1 1795344417330", PAGE)


def _without_start(page: bytes) -> bytes:
    return re.sub(rb"^process_start_time_seconds .*\n", b"", page, flags=re.MULTILINE)


# -- faults of several steps -----------------------------------------------------------------------------------------


async def _dripping(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
    """Some bytes of the page one by one, and then nothing."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 73198\r\n\r\n")
    for place in range(40):
        writer.write(PAGE[place : place + 1])
        await writer.drain()
    await hang(server, path, writer)


def _gigabyte(head: bytes, before: bytes = b"", behind: bytes = b"") -> Behaviour:
    """A gigabyte in pieces, each between `before` and `behind`."""

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        for _ in range((1 << 30) // len(PAGE) + 1):
            writer.write(before + PAGE + behind)
            await writer.drain()

    return behave


def _cut_between_lines(scenario: Scenario) -> Awaitable[Outputs]:
    return _stale_after(scenario, raw(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE[:_FINISHED_AT], close=True))


async def _stale_after(scenario: Scenario, behave: Behaviour) -> Outputs:
    await scenario.bad.switch(_at("/metrics", behave))
    await scenario.scrape_round()
    early = await scenario.read_outputs()
    await scenario.pass_stale_after()
    return early


async def _restarts_without_start(scenario: Scenario) -> Outputs:
    scenario.bad.page = _without_start(PAGE)
    await scenario.pass_stale_after()
    scenario.bad.page = _without_start(_set(PAGE, **_NEW_SAMPLES))
    await scenario.scrape_round()
    await scenario.models()
    return await scenario.read_outputs()


async def _sleeps(scenario: Scenario) -> Outputs:
    awake, asleep = (f'sleep_state="awake"}} {value}\n'.encode() for value in ("1.0", "0.0"))
    assert awake in PAGE
    scenario.bad.page = PAGE.replace(awake, asleep)
    await scenario.scrape_round()
    await scenario.until("down", "asleep")
    return await scenario.read_outputs()


async def _resets_its_cache(scenario: Scenario) -> Outputs:
    series = b'http_requests_total{handler="/reset_prefix_cache",method="POST",status="2xx"} 1.0\n'
    head = b"# TYPE http_requests_total counter\n"
    assert head in PAGE
    scenario.bad.page = PAGE.replace(head, head + series)
    await scenario.scrape_round()
    return await scenario.read_outputs()


async def _others(scenario: Scenario) -> Outputs:
    scenario.bad.page = _set(PAGE, vllm__num_requests_waiting="64.0")
    await scenario.scrape_round()
    return await scenario.read_outputs()


async def _replaced_after_outage(scenario: Scenario) -> Outputs:
    await scenario.bad.switch(None)
    await scenario.fail_scrapes(1)
    early = await scenario.read_outputs()
    await scenario.bad.switch(None)
    scenario.bad.page = _set(PAGE, **_NEW_SAMPLES)
    await scenario.bad.switch(good)
    await scenario.scrape_round()
    await scenario.models()
    return early


async def _loading_after_outage(scenario: Scenario) -> Outputs:
    await scenario.bad.switch(None)
    await scenario.fail_scrapes(1)
    early = await scenario.read_outputs()
    scenario.bad.page = _set(PAGE, **_NEW_SAMPLES)
    await scenario.bad.switch(_at("/health", raw(answer(b"", "503 Service Unavailable"))))
    await scenario.fail_health_probes(1)
    await scenario.until("down", "loading")
    return early


def _wall(seconds: float) -> Callable[[Scenario], Awaitable[Outputs]]:
    async def inject(scenario: Scenario) -> Outputs:
        scenario.clock.set_wall(seconds)
        await scenario.scrape_round()
        return await scenario.read_outputs()

    return inject


async def _repeated_timestamps(scenario: Scenario) -> Outputs:
    """The same timestamps on each page: the server has stopped measuring."""
    scenario.bad.page = _STAMPED
    await scenario.scrape_round()
    early = await scenario.read_outputs()
    await scenario.pass_stale_after()
    return early


async def _models_fail(scenario: Scenario) -> Outputs:
    await scenario.bad.switch(_at("/v1/models", raw(answer(b"<html>", "500 Oops"))))
    await scenario.scrape_round()
    return await scenario.read_outputs()


async def _half_hangs(scenario: Scenario) -> Outputs:
    other = scenario.good.pop()
    for server in (scenario.bad, other):
        await server.switch(hang)
    await scenario.fail_scrapes(1)
    early = await scenario.read_outputs()
    await scenario.fail_scrapes(2)
    await scenario.advance_until(lambda: len(scenario.live.healthy()) == 2)
    return early


async def _all_renamed(scenario: Scenario) -> Outputs:
    servers = [scenario.bad, *scenario.good]
    scenario.good.clear()
    for server in servers:
        server.page = PAGE.replace(b"vllm:", b"renamed_engine_")
    await scenario.fail_scrapes(2)
    early = await scenario.read_outputs()
    await scenario.fail_scrapes(1)
    await scenario.advance_until(lambda: not scenario.live.healthy())
    return early


async def _all_hang(scenario: Scenario) -> Outputs:
    others = list(scenario.good)
    scenario.good.clear()
    for server in (scenario.bad, *others):
        await server.switch(hang)
    await scenario.fail_scrapes(1)
    early = await scenario.read_outputs()
    await scenario.fail_scrapes(2)
    await scenario.advance_until(lambda: not scenario.live.healthy())
    return early


TABLE: tuple[FaultRow, ...] = (
    # -- no answer ---------------------------------------------------------------------------------------------------
    _down("target down", "The connection is refused: the server was killed.", "refused", None, since=AT_ONCE),
    _down("hang", "It accepts the connection and the request, and does not answer.", "timeout", hang,
          more="health_timeout"),
    _down("hang-up", "It closes each connection without an answer.", "reset", raw(close=True), more="health_broken"),
    _blind("no page", "Its health path answers, but its page hangs.", "timeout", hang),
    _blind("hang in the page", "It sends the head of the response and nothing more.", "timeout", drip),
    _blind("slow drip", "It sends its page byte by byte; the timeout applies to the whole page.", "timeout", _dripping),
    _blind("reset", "The connection is reset within the page.", "reset", reset),
    # -- invalid responses --------------------------------------------------------------------------------------
    _blind("status 500", "It answers 500.", "status", raw(answer(b"oops", "500 Internal Server Error"))),
    _blind("status 404", "It answers 404.", "status", raw(answer(b"", "404 Not Found"))),
    _blind("status 401", "It answers 401.", "status", raw(answer(b"", "401 Unauthorized"))),
    _blind("status 204", "It answers 204 without a page.", "status", raw(b"HTTP/1.1 204 No Content\r\n\r\n")),
    _blind("redirect", "It answers 302.", "status", raw(answer(b"", "302 Found", "Location: /x\r\n"))),
    _blind("500 with 1 GB", "It answers 500 with a Content-Length of 1 GB.", "status",
          raw(answer(b"", "500 Oops", length=1 << 30))),
    _blind("not HTTP", "Another protocol answers (SSH).", "bad_http", raw(b"SSH-2.0-OpenSSH_9.2\r\n")),
    _blind("endless head", "The head of the response never ends.", "bad_http",
          raw(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 20_000)),
    _blind("two lengths", "The head has two different Content-Lengths.", "bad_http",
          raw(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!")),
    _blind("invalid length", "The Content-Length is `-1`.", "bad_http",
          raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n")),
    _blind("invalid chunk size", "The size of a chunk is not a number.", "bad_http",
           raw(_CHUNKED + b"zz\r\nhello\r\n")),
    _blind("chunk too long", "A chunk is longer than its size.", "bad_http", raw(_CHUNKED + b"3\r\nhello\r\n")),
    # -- not reachable ----------------------------------------------------------------------------------------------
    *CONNECTION_ROWS,
    # -- invalid pages -----------------------------------------------------------------------------------------------
    _nothing_counted("empty page", "The page is empty, as that of a server which has counted nothing yet.", b""),
    _nothing_counted("blank page", "The page is one empty line.", b"\n"),
    _nothing_counted("page of comments", "The page has HELP and TYPE lines only.",
                     b"".join(re.findall(rb"(?m)^# (?:HELP|TYPE) vllm:.*\n", PAGE))),
    _blind("HTML", "The page is an HTML login page.", "not_metrics",
          raw(answer(b"<!DOCTYPE html>\n<html><body>Log in</body></html>\n"))),
    _blind("JSON", "The page is JSON.", "not_metrics", raw(answer(b'{"status":"ok"}\n'))),
    _blind("binary", "The page contains NUL bytes.", "not_metrics", raw(answer(PAGE.replace(b"tiny", b"\0", 1)))),
    _blind("unrequested gzip", "The page is compressed although no compression was requested.", "encoding",
          raw(answer(gzip.compress(PAGE), headers="Content-Encoding: gzip\r\n"))),
    _blind("undeclared gzip", "The page is compressed without a Content-Encoding.", "not_metrics",
          raw(answer(gzip.compress(PAGE)))),
    _blind("wrong engine", "The page is one of SGLang.", "wrong_engine",
          raw(answer(PAGE.replace(b"vllm:", b"sglang:")))),
    _blind("no engine", "The page is one of a program that is not a model server.", "wrong_engine",
          raw(answer(re.sub(rb"(?m)^.*vllm:.*\n", b"", PAGE)))),
    _blind("renamed metrics", "An upgrade has renamed every metric of the engine.", "wrong_engine",
           raw(answer(PAGE.replace(b"vllm:", b"renamed_engine_")))),
    # -- a page that is too large ------------------------------------------------------------------------------------
    _blind("1 GB declared", "The Content-Length is 1 GB.", "too_large", raw(answer(PAGE, length=1 << 30))),
    _blind("1 GB in chunks", "It sends 1 GB in chunks.", "too_large",
          _gigabyte(_CHUNKED, b"%x\r\n" % len(PAGE), b"\r\n")),
    _blind("1 GB without a length", "It sends 1 GB without a Content-Length.", "too_large",
          _gigabyte(b"HTTP/1.0 200 OK\r\n\r\n")),
    _blind("too many series", "The page has more than 10,000 series of the engine's names.", "too_large",
          raw(answer(PAGE + b"".join(b'vllm:num_requests_running{engine="%d"} 1\n' % number
                                     for number in range(1, MAX_SERIES))))),
    # -- a page that is cut ------------------------------------------------------------------------------------------
    _blind("page cut by the connection", "The connection ends before the Content-Length.", "truncated", break_off),
    _blind("page cut in a line", "The HTTP response is complete, but the page ends within a line.", "truncated",
          raw(answer(PAGE[:-5]))),
    _blind("chunks cut", "The connection ends before the last chunk.", "truncated",
          raw(_CHUNKED + b"5\r\n# ab\n\r\n", close=True)),
    FaultRow(
        "page cut between lines", "A response without a Content-Length ends within a family.",
        _cut_between_lines, AT_STALE, PICKED, without(FINISHED), withheld("stale", FINISHED), lacking(FINISHED),
        (refused(FINISHED, "cut_off"), *map(missing, _AFTER_THE_CUT)),
    ),
    # -- values that cannot be true ----------------------------------------------------------------------------------
    _value("NaN", "The KV usage is `NaN`.", KV_USAGE, "not_finite", _value_of(_KV, "NaN")),
    _value("+Inf", "The KV usage is `+Inf`.", KV_USAGE, "not_finite", _value_of(_KV, "+Inf")),
    _value("-Inf", "The KV usage is `-Inf`.", KV_USAGE, "not_finite", _value_of(_KV, "-Inf")),
    _value("overflow", "The KV usage is `1e999`.", KV_USAGE, "not_finite", _value_of(_KV, "1e999")),
    _value("negative", "The KV usage is -0.5.", KV_USAGE, "out_of_range", _value_of(_KV, "-0.5")),
    _value("over its range", "The KV usage is 79.8, a percentage.", KV_USAGE, "out_of_range", _value_of(_KV, "79.8")),
    _value("not a number", "The KV usage is `many`.", KV_USAGE, "bad_line", _value_of(_KV, "many")),
    _value("number of Python only", "The KV usage is `0_5`.", KV_USAGE, "bad_line", _value_of(_KV, "0_5")),
    _value("no value", "The line of the KV usage ends after its labels.", KV_USAGE, "bad_line", _value_of(_KV, "")),
    _value("unclosed quote", "A label of the KV usage has no closing quote.", KV_USAGE, "bad_line",
           lambda page: page.replace(_KV_LINE, _KV_LINE.replace(b'"}', b"}"))),
    _value("duplicate series", "The series of the KV usage occurs twice on the page.", KV_USAGE, "duplicate_series",
           lambda page: page + _KV_LINE),
    _value("one bad series of two", "One of two models has a queue length of `NaN`.", WAITING, "not_finite",
           lambda page: page + b'vllm:num_requests_waiting{engine="0",model_name="other"} NaN\n'),
    _value("series that disagree", "Two series of one engine report different block sizes.", BLOCK_SIZE,
           "disagreement",
           lambda page: page + b'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1\n'),
    _value("series of an unknown kind", "Two series of the KV usage differ in a label that names no engine.", KV_USAGE,
           "ambiguous", lambda page: page + _KV_LINE.replace(b"{", b'{shard="1",').replace(_KV_VALUE, b"0.1")),
    _value("sums of times", "Each set of adapters has the sum of the times of two processes.", LORA_RUNNING,
           "not_a_time", lambda page: re.sub(rb"(?m)^(vllm:lora_requests_info\{.*\}) .*$", rb"\1 3.59e+09", page)
           )._replace(counters=(refused(LORA_RUNNING, "not_a_time"), refused(LORA_WAITING, "not_a_time")),
                      state=without(LORA_RUNNING, LORA_WAITING), gauges=withheld("stale", LORA_RUNNING, LORA_WAITING),
                      metrics=lacking(LORA_RUNNING, LORA_WAITING)),
    _value("missing signal", "The page has no KV usage.", KV_USAGE, "missing",
           lambda page: page.replace(_KV_LINE, b"")),
    # -- a new server ------------------------------------------------------------------------------------------------
    _restarts("restart", "A new process runs since the last scrape.", "new_start_time", lambda page: page),
    _restarts("restart to a shorter page", "A new process runs, whose page has no KV usage yet.",
              "new_start_time", lambda page: page.replace(_set(_KV_LINE, **{_KV: "0.25"}), b""), (KV_USAGE,)),
    FaultRow(
        "restart without start time", "The page has no start time, and its counters decreased.",
        _restarts_without_start, AT_ONCE, PICKED, new_server(_NEW), published(_NEW), samples(_NEW),
        (counted("igw_server_restarts_total", reason="counter_went_back"),
         missing("start_time_seconds")),
    ),
    FaultRow(
        "restart with an outage", "The server is down for a scrape, then a new one runs.",
        _replaced_after_outage, AT_ONCE, PICKED, new_server(_NEW), published(_NEW), samples(_NEW),
        (failed("refused"), DOWN, counted("igw_health_changes_total", state="healthy"),
         counted("igw_server_restarts_total", reason="new_start_time")),
    ),
    # -- an empty prefix cache ---------------------------------------------------------------------------------------
    FaultRow(
        "sleep", "Its model is not loaded: it sleeps, and its prefix cache is lost.", _sleeps, AT_ONCE, LEFT_OUT,
        unhealthy("down", "asleep"), withheld("down"), absent("down", 0.5),
        (DOWN, counted("igw_prefix_caches_emptied_total", reason="asleep")),
    ),
    FaultRow(
        "cache reset", "Its page counts a `POST /reset_prefix_cache` since the last scrape: its blocks are forgotten.",
        _resets_its_cache, AT_ONCE, PICKED, HEALTHY, published(PAGE_VALUES), samples(PAGE_VALUES),
        (counted("igw_prefix_caches_emptied_total", reason="reset"),),
    ),
    # -- time --------------------------------------------------------------------------------------------------------
    _harmless("wall clock forward", "The wall clock is set forward by an hour.", _wall(3600), wall_clock(3600)),
    _harmless("wall clock back", "The wall clock is set back by an hour.", _wall(-3600), wall_clock(-3600)),
    FaultRow(
        "repeated samples", "All samples have the timestamps of the previous page.", _repeated_timestamps, AT_STALE,
        PICKED, blind("no_fresh_page"), withheld("blind"), absent("blind", 0.5), (BLIND,),
    ),
    # -- the health path ---------------------------------------------------------------------------------------------
    _health("health path answers 503", "It answers 503: its engine is dead, or it is draining.", "health_unavailable",
            raw(answer(b"", "503 Service Unavailable"))),
    _health("health path fails", "It answers 500.", "health_status", raw(answer(b"", "500 Internal Server Error"))),
    _health("no health path", "It answers 404: the configuration names a wrong path.", "health_not_found",
            raw(answer(b"", "404 Not Found"))),
    _health("health path hangs", "It does not answer; the page does.", "health_timeout", hang, AT_THIRD_HEALTH),
    _health("health path breaks", "It closes the connection; the page is served.", "health_broken", raw(close=True),
            AT_THIRD_HEALTH),
    FaultRow(
        "new server loading", "The server was down; its page is back, and its health path answers 503.",
        _loading_after_outage, AT_FIRST_PROBE, LEFT_OUT, unhealthy("down", "loading"), withheld("down"),
        absent("down", 0.5),
        (failed("refused"), DOWN, health_failed("loading"),
         counted("igw_server_restarts_total", reason="new_start_time")),
    ),
    # -- the exporter of the accelerators ----------------------------------------------------------------------------
    *EXPORTER_ROWS,
    # -- many at a time ----------------------------------------------------------------------------------------------
    _down("half of the fleet hangs", "Two of four endpoints hang.", "timeout", hang,
          more="health_timeout", endpoints=4)._replace(
        inject=_half_hangs),
    FaultRow(
        "the whole fleet hangs", "Every endpoint hangs.", _all_hang, AT_THIRD_PROBE, ALL_REFUSED,
        unhealthy("down", "timeout"), no_pool("down"), absent("down", 0.0),
        (failed("timeout"), DOWN, health_failed("health_timeout"),
         counted("igw_requests_rejected_total", status="503", reason="none_healthy")),
    ),
    FaultRow(
        "the whole fleet renames its metrics", "Every endpoint has an upgrade with other names.", _all_renamed,
        AT_THIRD, SERVED, blind("wrong_engine"), no_pool("blind"), absent("blind", 0.0),
        (failed("wrong_engine"), BLIND),
    ),
    FaultRow(
        "full of the work of others", "Its batch and its queue are full of requests that the agent did not send.",
        _others, AT_ONCE, LEFT_OUT, loaded_by_others(_OTHERS, 68.0), published(_OTHERS, "every gauge as reported"),
        samples(_OTHERS, "every sample as reported"), (),
    ),
    # -- odd, and right ----------------------------------------------------------------------------------------------
    _harmless("more than declared", "Bytes follow the end of the response.",
              _answers(raw(answer(PAGE) + b"HTTP/1.1 500 Ha\r\n\r\n"))),
    _harmless("interim response", "`100 Continue` precedes the response.",
              _answers(raw(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(PAGE)))),
    _harmless("closes after each response", "The connection is closed after each response.",
              _answers(raw(answer(PAGE, headers="Connection: close\r\n"), close=True))),
    _harmless("one byte at a time", "The page arrives in many small pieces.",
              _answers(raw(*(answer(PAGE)[at : at + 997] for at in range(0, len(PAGE) + 100, 997))))),
    _harmless("CRLF line ends", "Lines end with CR and LF.",
              _answers(raw(answer(PAGE.replace(b"\n", b"\r\n"))))),
    _harmless("spaces, timestamps, exemplars", "Lines are indented and have timestamps and exemplars.",
              _answers(raw(answer(_ODDLY_SPACED)))),
    _harmless("invalid unread lines", "Lines of other names are invalid.",
              _answers(raw(answer(b"other{x=1} nothing\n" + PAGE + b"}{\nother 1 2 3\n")))),
    _harmless("series of processes", "The KV usage has a series for each process, and all but one are 0.",
              _answers(raw(answer(PAGE.replace(_KV_LINE, _OF_PROCESSES))))),
    _harmless("renamed by a collector", "Names have underscores for colons.",
              _answers(raw(answer(PAGE.replace(b"vllm:", b"vllm_"))))),
    _harmless("renamed by Ray", "Names begin with `ray_vllm_`.",
              _answers(raw(answer(PAGE.replace(b"vllm:", b"ray_vllm_"))))),
    _harmless("model list fails", "`/v1/models` answers 500.", _models_fail),
)  # fmt: skip
