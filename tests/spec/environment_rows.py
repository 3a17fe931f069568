"""The rows of the fault table that need an environment: TLS, a token, an accelerator exporter."""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable

from agent.accelerators.table import UTILIZATION
from agent.events.accelerators import DevicesRead
from agent.scaling.accelerators import BY_SIGNAL
from tests.fakes.model_server import Behaviour, answer, good, hang, raw
from tests.scrape.authority import Authority
from tests.spec.environment import DEVICES, OTHER_DEVICES, STALE_AFTER, TLS, TOKEN, WITH_DEVICES, WITH_TOKEN
from tests.spec.expectations import (
    BLIND,
    DOWN,
    LEFT_OUT,
    PAGE_VALUES,
    PICKED,
    SERVED,
    CountedSeries,
    Expected,
    Observations,
    absent,
    blind,
    counted,
    failed,
    health_failed,
    new_server,
    no_pool,
    published,
    samples,
    unhealthy,
    values,
    withheld,
)
from tests.spec.fault_row import AT_ONCE, AT_THIRD, AT_THIRD_PROBE, FaultRow, repaired
from tests.spec.scenario import PAGE, Outputs, Scenario, no_route_to

# -- TLS, token, route -----------------------------------------------------------------------------------------------

TlsSettings = Callable[[Scenario], ssl.SSLContext | None]


def _tls_fault(fault: str, what: str, reason: str, tls_settings: TlsSettings) -> FaultRow:
    """A server that restarts with other TLS settings."""

    async def inject(scenario: Scenario) -> Outputs:
        await _listen(scenario, tls_settings(scenario))
        await scenario.fail_scrapes(1)
        early = await scenario.read_outputs()
        await scenario.fail_scrapes(2)
        await scenario.until("down", reason)
        return early

    async def repair(scenario: Scenario) -> None:
        authority = scenario.environment.authorities
        await _listen(scenario, authority.server(authority.sign("again")))

    return FaultRow(
        fault, what, inject, AT_THIRD_PROBE, LEFT_OUT, unhealthy("down", reason), withheld("down"), absent("down", 0.5),
        (failed(reason), DOWN, health_failed("health_broken")), setup=TLS, repair=repair,
    )  # fmt: skip


async def _listen(scenario: Scenario, tls: ssl.SSLContext | None) -> None:
    """Restart the server with these TLS settings, without time passing."""
    await scenario.bad.stop()
    scenario.bad.tls = tls
    await scenario.bad.switch(good)


def _signed(name: str, hosts: str = "IP:127.0.0.1", *, not_after: str = "") -> TlsSettings:
    def tls_settings(scenario: Scenario) -> ssl.SSLContext:
        authority = scenario.environment.authorities
        return authority.server(authority.sign(name, hosts, not_after=not_after))

    return tls_settings


def _untrusted(scenario: Scenario) -> ssl.SSLContext:
    untrusted = Authority(scenario.environment.folder, "untrusted")
    return untrusted.server(untrusted.sign("theirs"))


async def _no_route(scenario: Scenario) -> Outputs:
    scenario.ending.enter_context(no_route_to(scenario.bad.port))
    await scenario.bad.stop()
    await scenario.fail_scrapes(1)
    return await scenario.read_outputs()


async def _route_again(scenario: Scenario) -> None:
    scenario.ending.close()
    await repaired(scenario)


async def _token_missing(scenario: Scenario) -> Outputs:
    scenario.good.clear()
    scenario.environment.token.unlink()
    await scenario.fail_scrapes(2)
    early = await scenario.read_outputs()
    await scenario.fail_scrapes(1)
    await scenario.until("blind", "token_file")
    await scenario.advance_until(lambda: not scenario.live.healthy())
    return early


async def _token_again(scenario: Scenario) -> None:
    scenario.environment.token.write_text(TOKEN)


CONNECTION_ROWS: tuple[FaultRow, ...] = (
    FaultRow(
        "address unreachable", "There is no route to the address: its node is gone, or a network policy blocks it.",
        _no_route, AT_ONCE, LEFT_OUT, unhealthy("down", "unreachable"), withheld("down"), absent("down", 0.5),
        (failed("unreachable"), DOWN), repair=_route_again,
    ),
    _tls_fault("certificate expired", "https: its certificate has expired.", "tls_expired",
         _signed("late", not_after="20200102000000Z")),
    _tls_fault("certificate for another host", "https: its certificate is for another host name.", "tls_name",
         _signed("other", "DNS:other.example")),
    _tls_fault("untrusted certificate", "https: its certificate is not signed by a trusted CA.", "tls_untrusted",
         _untrusted),
    _tls_fault("no TLS", "https: it serves plain HTTP.", "tls", lambda _: None),
    FaultRow(
        "token file missing",
        "The file with the pool's bearer token is missing: no page of the pool can be requested.",
        _token_missing, AT_THIRD, SERVED, blind("token_file"), no_pool("blind"), absent("blind", 0.0),
        (failed("token_file"), BLIND),
        setup=WITH_TOKEN, repair=_token_again,
    ),
)  # fmt: skip

# -- the exporter of the accelerators --------------------------------------------------------------------------------

AT_EXPORTER = "at the first scrape of the exporter"
AT_STALE_DEVICES = "after `accelerators[].staleAfter` without a page"
_NAMES = tuple(metric.name for _, metric in BY_SIGNAL)


def _stale_devices(observed: Observations) -> None:
    values(observed.after, observed.bad, PAGE_VALUES)
    (before,), (late,) = (seen.state[observed.bad]["accelerators"] for seen in (observed.before, observed.after))
    assert before["signals"][UTILIZATION]["value"] == 0.96875
    assert before["devices"] == late["devices"]
    current = {(signal["value"], signal["fresh"], signal["reason"]) for signal in late["signals"].values()}
    assert current == {(None, False, "stale")}
    assert late["age_seconds"] >= STALE_AFTER


def _withheld(observed: Observations) -> None:
    published(PAGE_VALUES).check(observed)
    for name in _NAMES:
        (row,) = observed.after.gauge(name, observed.bad)
        assert (row["value"], row["withheld"]) == (None, "stale"), name


def _no_samples(observed: Observations) -> None:
    samples(PAGE_VALUES).check(observed)
    for name in _NAMES:
        assert observed.before.page.series(name)
        assert observed.bad not in observed.after.page.by("server", name), name
    assert observed.before.page.of("igw_accelerator_exporter_fresh") == 1
    assert observed.after.page.of("igw_accelerator_exporter_fresh") == 0


STALE_DEVICES = Expected(
    "`healthy`, values as reported; values of its accelerators as last reported until stale, then null", _stale_devices
)
NO_GAUGE = Expected("`igw_endpoint_accelerator_...` withheld, `stale`; the rest as reported", _withheld)
NO_SAMPLE = Expected(
    "no sample of its accelerators; `igw_accelerator_exporter_fresh` 0; the rest as reported", _no_samples
)


def _exporter(fault: str, what: str, reason: str, behave: Behaviour | None) -> FaultRow:
    """An exporter without a readable page."""

    async def inject(scenario: Scenario) -> Outputs:
        await scenario.environment.exporter.switch(behave)
        await scenario.scrape_round()
        await scenario.advance_until(scenario.exporter_failures)
        early = await scenario.read_outputs()
        await scenario.pass_stale_after()
        return early

    return FaultRow(
        fault, what, inject, AT_STALE_DEVICES, PICKED, STALE_DEVICES, NO_GAUGE, NO_SAMPLE,
        (counted("igw_accelerator_scrapes_total", source="dcgm", result="failed", reason=reason),),
        setup=WITH_DEVICES, repair=_exporter_repaired,
    )  # fmt: skip


async def _exporter_repaired(scenario: Scenario) -> None:
    scenario.environment.exporter.page = DEVICES
    await scenario.environment.exporter.switch(good)


def _pages(page: bytes) -> Callable[[Scenario], Awaitable[Outputs]]:
    async def inject(scenario: Scenario) -> Outputs:
        assert page != DEVICES
        scenario.environment.exporter.page = page
        await scenario.advance_until(lambda: scenario.health()[0] == "down")
        return await scenario.read_outputs()

    return inject


def _after_xid(first: bytes, second: bytes) -> Callable[[Scenario], Awaitable[Outputs]]:
    """A page with a fatal error, then another page; the endpoint has to be down after both."""

    async def inject(scenario: Scenario) -> Outputs:
        early = await _pages(first)(scenario)
        scenario.environment.exporter.page = second
        pages = len(scenario.events(DevicesRead))
        await scenario.advance_until(lambda: len(scenario.events(DevicesRead)) > pages + 1)
        return early

    return inject


async def _restarted_after_94(scenario: Scenario) -> Outputs:
    early = await _pages(_CONTAINED)(scenario)
    scenario.bad.page = NEW_PROCESS
    await scenario.until("healthy")
    await scenario.models()
    return early


async def _server_and_exporter_repaired(scenario: Scenario) -> None:
    await _exporter_repaired(scenario)
    await repaired(scenario)


def _stays_down(fault: str, what: str, page: bytes, *more: CountedSeries) -> FaultRow:
    """A later page of an exporter that does not end a fault."""
    return FaultRow(
        fault, what, _after_xid(_OFF_THE_BUS, page), AT_EXPORTER, LEFT_OUT, unhealthy("down", "accelerator_xid"),
        withheld("down"), absent("down", 0.5),
        (DOWN, counted("igw_accelerator_health_changes_total", source="dcgm", reason="accelerator_xid"), *more),
        setup=WITH_DEVICES, repair=_exporter_repaired,
    )  # fmt: skip


_LOST = counted("igw_accelerators_lost_total", source="dcgm")
_CARD = re.compile(rb'(?m)^.*gpu="0".*\n')
NEW_PROCESS = re.sub(rb"(?m)^(process_start_time_seconds) .*$", rb"\1 1.79534999e+09", PAGE)
_CONTAINED = DEVICES.replace(b'err_code="0",err_msg="No Error"} 0', b'err_code="94",err_msg="x"} 94', 1)
_OFF_THE_BUS = DEVICES.replace(b'err_code="0",err_msg="No Error"} 0', b'err_code="79",err_msg="x"} 79', 1)

EXPORTER_ROWS: tuple[FaultRow, ...] = (
    _exporter("exporter down", "The connection to the exporter is refused.", "refused", None),
    _exporter("exporter hangs", "The exporter accepts the request and does not answer.", "timeout", hang),
    _exporter("exporter with HTML", "The exporter returns a web page.", "not_metrics",
              raw(answer(b"<html><body>Log in</body></html>\n"))),
    _exporter("other exporter", "The page is one of another kind of exporter.", "wrong_engine",
              raw(answer(OTHER_DEVICES))),
    FaultRow(
        "accelerator unhealthy", "The exporter reports a fatal XID of one of its accelerators.", _pages(_OFF_THE_BUS),
        AT_EXPORTER, LEFT_OUT, unhealthy("down", "accelerator_xid"), withheld("down"),
        absent("down", 0.5),
        (DOWN, counted("igw_accelerator_health_changes_total", source="dcgm", reason="accelerator_xid")),
        setup=WITH_DEVICES, repair=_exporter_repaired,
    ),
    _stays_down("unhealthy accelerator gone", "The accelerator with the fatal XID leaves the page.",
                _CARD.sub(b"", _OFF_THE_BUS), _LOST),
    _stays_down("unhealthy accelerator without its pod", "The accelerator with the fatal XID loses its pod's label.",
                _CARD.sub(lambda line: line[0].replace(b'pod="chat-0"', b'pod=""'), _OFF_THE_BUS), _LOST),
    _stays_down("harmless error after a fatal one", "A harmless XID takes the place of the fatal one.",
                _OFF_THE_BUS.replace(b'err_code="79",err_msg="x"} 79', b'err_code="45",err_msg="x"} 45')),
    FaultRow(
        "restart after XID 94", "The server restarts after an XID whose remedy is a restart; it stays on the page.",
        _restarted_after_94, "at the first scrape of the new process", PICKED,
        new_server(PAGE_VALUES), published(PAGE_VALUES), samples(PAGE_VALUES),
        (DOWN, counted("igw_health_changes_total", state="healthy"),
         counted("igw_server_restarts_total", reason="new_start_time"),
         counted("igw_accelerator_health_changes_total", source="dcgm", reason="accelerator_xid"),
         counted("igw_accelerator_health_changes_total", source="dcgm", reason="recovered")),
        setup=WITH_DEVICES, repair=_server_and_exporter_repaired,
    ),
)  # fmt: skip
