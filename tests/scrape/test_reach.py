"""Servers that are reached by TLS, with a token, by another port or path: real sockets and real certificates."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvloop

from agent.clock import SystemClock
from agent.scrape.loop import ScrapeLoop, Target
from agent.scrape.reach import PLAIN, Reach, ReachSettings
from agent.scrape.reasons import REASONS
from agent.signals import RUNNING
from tests.scrape.authority import Authority
from tests.scrape.model_server import ModelServer, answer, good
from tests.scrape.test_loop import Sink
from tests.waiting import eventually


class AheadClock(SystemClock):
    """The system's, as many seconds ahead as a test wants."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class Rig:
    """A loop, a sink, servers and certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = AheadClock()
        self.loop = ScrapeLoop(self.clock)
        self.sink = Sink()
        self.servers: list[ModelServer] = []
        self.heads: list[str] = []

    async def server(self, **settings: Any) -> ModelServer:
        server = ModelServer()
        await server.start(**settings)
        self.servers.append(server)
        return server

    def scrape(self, server: ModelServer, reach: Reach = PLAIN, **settings: Any) -> str:
        return self.scrape_at(server.port, reach, **settings)

    def scrape_at(self, port: int, reach: Reach = PLAIN, **settings: Any) -> str:
        usual: dict[str, Any] = {"interval": 0.05, "models_interval": 1e9, "health_path": ""}
        target = Target(f"127.0.0.1:{port}", "vllm", reach=reach, **{**usual, **settings})
        self.loop.set_targets("pool", [target], self.sink)
        return target.address

    def tls(self, authority: Authority | None = None, **settings: Any) -> Reach:
        ca_file = str(authority.file) if authority else ""
        return Reach(ReachSettings(https=True, ca_file=ca_file, **settings))

    async def close(self) -> None:
        await self.loop.stop()
        for server in self.servers:
            await server.stop()

    async def reads(self, address: str, more: int = 2) -> None:
        wanted = self.sink.count(address) + more
        await self.sink.until(lambda: self.sink.count(address) >= wanted)

    async def fails(self, address: str) -> tuple[str, str]:
        before = len(self.sink.failures.get(address, ()))
        await self.sink.until(lambda: len(self.sink.failures.get(address, ())) > before)
        reason, detail = self.sink.failures[address][-1]
        assert reason in REASONS
        return reason, detail


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = Rig(tmp_path)
    yield made
    await made.close()


async def test_a_server_is_scraped_by_tls_on_one_connection(rig: Rig, authority: Authority) -> None:
    server = await rig.server(tls=authority.server(authority.sign("server")))
    address = rig.scrape(server, rig.tls(authority), health_path=None, health_interval=0.1)
    await rig.reads(address, 5)
    await eventually(lambda: "" in rig.sink.words.get(address, ()))
    assert server.connections == 1
    assert not rig.sink.failures


async def test_an_ipv6_address_is_verified_like_any_other(rig: Rig, authority: Authority) -> None:
    server = await rig.server(tls=authority.server(authority.sign("six", "IP:::1")), host="::1")
    rig.loop.set_targets(
        "pool",
        [Target(f"[::1]:{server.port}", "vllm", interval=0.05, reach=rig.tls(authority), health_path="")],
        rig.sink,
    )
    await rig.reads(f"[::1]:{server.port}")
    assert not rig.sink.failures


async def test_a_certificate_may_name_the_host_as_the_pool_calls_it_or_as_the_configuration_says(
    rig: Rig, authority: Authority
) -> None:
    server = await rig.server(tls=authority.server(authority.sign("named", "DNS:vllm.example")))
    address = rig.scrape(server, rig.tls(authority), name="vllm.example")
    await rig.reads(address)
    address = rig.scrape(server, rig.tls(authority, server_name="vllm.example"))
    await rig.reads(address)
    address = rig.scrape(server, rig.tls(authority, server_name="other.example"))
    reason, detail = await rig.fails(address)
    assert reason == "tls_name"
    assert "write serverName" in detail


@pytest.mark.parametrize(
    ("case", "reason", "part"),
    [
        ("unknown authority", "tls_untrusted", "write caFile"),
        ("expired", "tls_expired", "has expired"),
        ("other name", "tls_name", "write serverName"),
        ("plain server", "tls", "write scheme: http"),
        ("no CA file", "tls_files", "No such file"),
        ("bad CA file", "tls_files", "ca.pem"),
        ("wants a client", "tls_client", "write certFile and keyFile"),
    ],
)
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_what_is_wrong_with_tls_is_told_by_its_reason_and_what_to_write(
    tmp_path: Path, authority: Authority, case: str, reason: str, part: str, factory: Any
) -> None:
    """Ours runs on uvloop, which has a TLS of its own."""

    async def run() -> tuple[str, str]:
        rig = Rig(tmp_path)
        try:
            return await told_of(rig, authority, case)
        finally:
            await rig.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        found, detail = runner.run(run())
    assert (found, part in detail) == (reason, True), (found, detail)


async def told_of(rig: Rig, authority: Authority, case: str) -> tuple[str, str]:
    """Why a server cannot be scraped where this is the case, and in which words."""
    reach = rig.tls(authority)
    tls = authority.server(authority.sign("server"))
    if case == "unknown authority":
        reach = rig.tls(Authority(rig.folder, "stranger"))
    elif case == "expired":
        tls = authority.server(authority.sign("old", not_after="20200102000000Z"))
    elif case == "other name":
        tls = authority.server(authority.sign("other", "DNS:other.example"))
    elif case in ("no CA file", "bad CA file"):
        file = rig.folder / "ca.pem"
        if case == "bad CA file":
            file.write_text("no certificate")
        reach = Reach(ReachSettings(https=True, ca_file=str(file)))
    elif case == "plain server":
        async with await asyncio.start_server(refuse, "127.0.0.1") as plain:
            return await rig.fails(rig.scrape_at(plain.sockets[0].getsockname()[1], reach))
    elif case == "wants a client":
        async with wanting_clients(authority) as port:
            return await rig.fails(rig.scrape_at(port, reach))
    server = await rig.server(tls=tls)
    found = await rig.fails(rig.scrape(server, reach))
    assert not rig.sink.pages
    return found


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """As a plain server answers whoever says hello by TLS."""
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def wanting_clients(authority: Authority) -> AsyncIterator[int]:
    """A server that tells by TLS 1.3 that it misses our certificate, as asyncio's own does not; its port."""
    cert, key = authority.sign("server")
    server = await asyncio.create_subprocess_exec(
        "openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", cert, "-key", key, "-Verify", "1",
        "-CAfile", authority.file, "-verify_return_error",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert server.stdout is not None
        while not (line := await server.stdout.readline()).startswith(b"ACCEPT"):
            assert line, "openssl ended before it listened"
        yield int(line.rpartition(b":")[2])
    finally:
        server.kill()
        await server.wait()


async def test_a_server_that_speaks_tls_is_not_read_as_plain(rig: Rig, authority: Authority) -> None:
    server = await rig.server(tls=authority.server(authority.sign("server")))
    reason, _ = await rig.fails(rig.scrape(server))
    assert reason in ("reset", "bad_http")


async def test_whoever_answers_is_trusted_where_that_was_asked_for(rig: Rig, authority: Authority) -> None:
    server = await rig.server(tls=authority.server(authority.sign("any", "DNS:any.example")))
    assert (await rig.fails(rig.scrape(server, rig.tls())))[0] == "tls_untrusted"
    address = rig.scrape(server, rig.tls(insecure_skip_verify=True))
    await rig.reads(address)
    assert rig.sink.pages[address][0][0].readings[RUNNING] == 4


async def test_a_client_certificate_is_shown_and_a_new_one_holds_for_new_connections(
    rig: Rig, authority: Authority
) -> None:
    server = await rig.server(tls=authority.server(authority.sign("server"), wants_clients=True))
    cert, key = rig.folder / "client.pem", rig.folder / "client.key"
    stranger = Authority(rig.folder, "stranger").sign("stranger-client")
    for source, target in zip(stranger, (cert, key), strict=True):
        shutil.copy(source, target)
    address = rig.scrape(server, rig.tls(authority, cert_file=str(cert), key_file=str(key)))
    reason, _ = await rig.fails(address)
    assert reason in ("tls_client", "reset")
    for source, target in zip(authority.sign("client"), (cert, key), strict=True):
        shutil.copy(source, target)
    rig.clock.ahead += 2
    await rig.reads(address)


def wants(token: str) -> Any:
    """A server that answers only whoever has this token."""

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if f"Authorization: Bearer {token}\r\n" in server.head:
            await good(server, path, writer)
        else:
            writer.write(answer(b"", "401 Unauthorized"))

    return behave


async def test_a_token_is_sent_with_all_that_is_asked_and_a_new_one_with_the_next(rig: Rig) -> None:
    file = rig.folder / "token"
    file.write_text("first\n")
    server = await rig.server()
    server.behave = wants("first")
    reach = Reach(ReachSettings(token_file=str(file)))
    address = rig.scrape(server, reach, health_path=None, health_interval=0.1, models_interval=0.1)
    await eventually(lambda: address in rig.sink.models and "" in rig.sink.words.get(address, ()))
    assert address not in rig.sink.failures
    server.behave = wants("second")
    reason, detail = await rig.fails(address)
    assert (reason, detail) == ("status", f"HTTP 401: the server refuses the token in {file}")
    # As Kubernetes does it: another file in its place.
    (rig.folder / "new").write_text("second")
    (rig.folder / "new").replace(file)
    await rig.reads(address)
    assert server.connections <= 2 + len(rig.sink.failures[address])


async def test_a_server_that_refuses_whoever_has_no_token_tells_what_to_write(rig: Rig) -> None:
    server = await rig.server()
    server.behave = wants("any")
    reason, detail = await rig.fails(rig.scrape(server))
    assert (reason, "write tokenFile" in detail) == ("status", True)


async def test_a_new_token_costs_one_scrape_where_the_server_knows_the_old_one_no_more(rig: Rig) -> None:
    """The file was looked at a moment ago, and would not be looked at for a while."""
    file = rig.folder / "token"
    file.write_text("first")
    server = await rig.server()
    server.behave = wants("first")
    address = rig.scrape(server, Reach(ReachSettings(token_file=str(file))))
    await rig.reads(address)
    file.write_text("second")
    server.behave = wants("second")
    await rig.reads(address)
    assert "Bearer second" in server.head
    assert len(rig.sink.failures.get(address, ())) <= 1


@pytest.mark.parametrize("content", [None, "", "\n", "two words", "\u00fc"])
async def test_a_token_file_that_holds_none_is_told_and_nothing_is_asked(rig: Rig, content: str | None) -> None:
    file = rig.folder / "token"
    if content is not None:
        file.write_text(content)
    server = await rig.server()
    address = rig.scrape(server, Reach(ReachSettings(token_file=str(file))), health_path=None)
    reason, detail = await rig.fails(address)
    assert reason == "token_file"
    assert str(file) in detail
    assert not server.asked
    file.write_text("now there")
    file.write_text("nowthere")
    await rig.reads(address)


async def test_page_and_health_may_be_elsewhere_than_the_server_serves(rig: Rig) -> None:
    serving, page, health = await rig.server(), await rig.server(), await rig.server()
    address = rig.scrape(
        serving, path="/m", metrics_port=page.port, health_path="/health", health_port=health.port, health_interval=0.1,
        models_interval=0.1,
    )  # fmt: skip
    await rig.reads(address, 5)
    await eventually(lambda: address in rig.sink.models and rig.sink.words.get(address, []).count("") >= 2)
    assert set(serving.asked) == {"/v1/models"}
    assert set(page.asked) == {"/m"}
    assert set(health.asked) == {"/health"}
    assert {server.connections for server in rig.servers} == {1}


async def test_a_health_port_at_which_nobody_listens_is_no_dead_server(rig: Rig, free_port: int) -> None:
    server = await rig.server()
    address = rig.scrape(server, health_path=None, health_port=free_port, health_interval=0.1)
    await rig.reads(address, 3)
    assert set(rig.sink.words[address]) == {"health_refused"}
    assert address not in rig.sink.failures


async def test_another_way_to_the_same_server_is_taken_at_once(rig: Rig, authority: Authority) -> None:
    plain, secret = await rig.server(), await rig.server(tls=authority.server(authority.sign("server")))
    address = rig.scrape(plain)
    await rig.reads(address)
    rig.scrape(plain, rig.tls(authority), metrics_port=secret.port)
    await eventually(lambda: secret.asked)
    await rig.reads(address)
    await eventually(lambda: not plain.writers)
    asked = len(plain.asked)
    await rig.reads(address)
    assert len(plain.asked) == asked
    assert not rig.sink.failures
