"""Rows of the table of bad input that need something beside the endpoints: TLS, a token, an exporter of devices."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

from agent.accelerators.table import UTILIZATION
from agent.scaling.accelerators import BY_SIGNAL
from tests.scrape.authority import Authority
from tests.scrape.model_server import Behaviour, answer, good, hang, raw
from tests.spec.row import AT_ONCE, AT_THIRD, AT_THIRD_QUESTION, Row, mended
from tests.spec.scene import DEVICES, OTHER_DEVICES, STALE_AFTER, TLS, TOKEN, WITH_DEVICES, WITH_TOKEN
from tests.spec.story import Seen, Story, no_way_to
from tests.spec.words import (
    ALL_REFUSED,
    DOWN,
    LEFT_OUT,
    NO_POOL,
    PICKED,
    TOLD,
    Expected,
    Told,
    absent,
    counted,
    failed,
    published,
    samples,
    unhealthy,
    unwell,
    values,
    withheld,
)

# -- how servers are reached -----------------------------------------------------------------------------------------

Listens = Callable[[Story], ssl.SSLContext | None]


def _tls(fault: str, what: str, reason: str, listens: Listens) -> Row:
    """A server that comes back and listens otherwise."""

    async def do(story: Story) -> Seen:
        await _listen(story, listens(story))
        await story.failures(1)
        early = await story.look()
        await story.failures(2)
        await story.until("down", reason)
        return early

    async def mend(story: Story) -> None:
        authority = story.around.authorities
        await _listen(story, authority.server(authority.sign("again")))

    return Row(
        fault, what, do, AT_THIRD_QUESTION, LEFT_OUT, unhealthy("down", reason), withheld("down"), absent("down", 0.5),
        (failed(reason), DOWN, unwell("health_broken")), scene=TLS, mend=mend,
    )  # fmt: skip


async def _listen(story: Story, tls: ssl.SSLContext | None) -> None:
    """It breaks every connection and listens so: no time passes meanwhile."""
    await story.bad.stop()
    story.bad.tls = tls
    await story.bad.turn(good)


def _signed(name: str, hosts: str = "IP:127.0.0.1", *, not_after: str = "") -> Listens:
    def listens(story: Story) -> ssl.SSLContext:
        authority = story.around.authorities
        return authority.server(authority.sign(name, hosts, not_after=not_after))

    return listens


def _by_a_stranger(story: Story) -> ssl.SSLContext:
    stranger = Authority(story.around.folder, "stranger")
    return stranger.server(stranger.sign("theirs"))


async def _no_way(story: Story) -> Seen:
    story.ending.enter_context(no_way_to(story.bad.port))
    await story.bad.stop()
    await story.failures(1)
    return await story.look()


async def _a_way_again(story: Story) -> None:
    story.ending.close()
    await mended(story)


async def _token_gone(story: Story) -> Seen:
    story.good.clear()
    story.around.token.unlink()
    await story.failures(2)
    early = await story.look()
    await story.failures(1)
    await story.flow(lambda: not story.live.healthy())
    return early


async def _token_again(story: Story) -> None:
    story.around.token.write_text(TOKEN)


REACHING: tuple[Row, ...] = (
    Row(
        "address unreachable", "No way leads to the address: its node is gone, or a network policy is in the way.",
        _no_way, AT_ONCE, LEFT_OUT, unhealthy("down", "unreachable"), withheld("down"), absent("down", 0.5),
        (failed("unreachable"), DOWN), mend=_a_way_again,
    ),
    _tls("certificate expired", "By https: its certificate has expired.", "tls_expired",
         _signed("late", not_after="20200102000000Z")),
    _tls("certificate of another", "By https: its certificate names another host.", "tls_name",
         _signed("other", "DNS:other.example")),
    _tls("certificate of a stranger", "By https: its certificate is not signed by a trusted CA.", "tls_untrusted",
         _by_a_stranger),
    _tls("no TLS", "By https: it speaks plain HTTP.", "tls", lambda _: None),
    Row(
        "token file gone", "The file with the pool's bearer token is missing: nobody of the pool can be asked.",
        _token_gone, AT_THIRD, ALL_REFUSED, unhealthy("down", "token_file"), NO_POOL, absent("down", 0.0),
        (failed("token_file"), DOWN, counted("igw_requests_rejected_total", status="503", reason="none_healthy")),
        scene=WITH_TOKEN, mend=_token_again,
    ),
)  # fmt: skip

# -- the exporter of the accelerators --------------------------------------------------------------------------------

AT_EXPORTER = "at the first scrape of the exporter"
AT_STALE_DEVICES = "after `accelerators[].staleAfter` without a page of the exporter"
_NAMES = tuple(metric.name for _, metric in BY_SIGNAL)


def _blind(told: Told) -> None:
    values(told.seen, told.bad, TOLD)
    (before,), (late,) = (seen.state[told.bad]["accelerators"] for seen in (told.before, told.seen))
    assert before["signals"][UTILIZATION]["value"] == 0.96875
    assert before["devices"] == late["devices"]
    told_now = {(said["value"], said["fresh"], said["reason"]) for said in late["signals"].values()}
    assert told_now == {(None, False, "stale")}
    assert late["age_seconds"] >= STALE_AFTER


def _withheld(told: Told) -> None:
    published(TOLD).check(told)
    for name in _NAMES:
        (row,) = told.seen.gauge(name, told.bad)
        assert (row["value"], row["withheld"]) == (None, "stale"), name


def _no_samples(told: Told) -> None:
    samples(TOLD).check(told)
    for name in _NAMES:
        assert told.before.page.series(name)
        assert told.bad not in told.seen.page.by("server", name), name
    assert told.before.page.of("igw_accelerator_exporter_fresh") == 1
    assert told.seen.page.of("igw_accelerator_exporter_fresh") == 0


BLIND = Expected("`healthy`, as the server says; its accelerators' values as last known until stale, then null", _blind)
NO_GAUGE = Expected("`igw_endpoint_accelerator_...` withheld, `stale`; the rest as the server says", _withheld)
NO_SAMPLE = Expected(
    "no sample of its accelerators; `igw_accelerator_exporter_fresh` 0; the rest as the server says", _no_samples
)


def _exporter(fault: str, what: str, reason: str, behave: Behaviour | None) -> Row:
    """An exporter that brings no page."""

    async def do(story: Story) -> Seen:
        await story.around.exporter.turn(behave)
        await story.turn()
        await story.flow(story.silent)
        early = await story.look()
        await story.grow_stale()
        return early

    return Row(
        fault, what, do, AT_STALE_DEVICES, PICKED, BLIND, NO_GAUGE, NO_SAMPLE,
        (counted("igw_accelerator_scrapes_total", source="dcgm", result="failed", reason=reason),),
        scene=WITH_DEVICES, mend=_exporter_well,
    )  # fmt: skip


async def _exporter_well(story: Story) -> None:
    story.around.exporter.page = DEVICES
    await story.around.exporter.turn(good)


def _pages(page: bytes) -> Callable[[Story], Awaitable[Seen]]:
    async def do(story: Story) -> Seen:
        assert page != DEVICES
        story.around.exporter.page = page
        await story.flow(lambda: story.verdict()[0] == "down")
        return await story.look()

    return do


_OFF_THE_BUS = DEVICES.replace(b'err_code="0",err_msg="No Error"} 0', b'err_code="79",err_msg="x"} 79', 1)

EXPORTERS: tuple[Row, ...] = (
    _exporter("exporter down", "Nobody listens at the accelerators' exporter.", "refused", None),
    _exporter("exporter silent", "The exporter takes the request, and says nothing.", "timeout", hang),
    _exporter("exporter of HTML", "The exporter answers with a web page.", "not_metrics",
              raw(answer(b"<html><body>Log in</body></html>\n"))),
    _exporter("exporter of others", "The page is that of another kind of exporter.", "wrong_engine",
              raw(answer(OTHER_DEVICES))),
    Row(
        "accelerator unhealthy", "The exporter reports a fatal XID of one of its accelerators.", _pages(_OFF_THE_BUS),
        AT_EXPORTER, LEFT_OUT, unhealthy("down", "accelerator_xid"), withheld("down"),
        absent("down", 0.5),
        (DOWN, counted("igw_accelerator_health_changes_total", source="dcgm", reason="accelerator_xid")),
        scene=WITH_DEVICES, mend=_exporter_well,
    ),
)  # fmt: skip
