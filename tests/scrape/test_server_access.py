"""Access to servers by TLS, with a token, by another port or path: real sockets and real certificates."""

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
from agent.scrape.loop import ScrapeLoop
from agent.scrape.reasons import REASONS
from agent.scrape.server_access import PLAIN, HttpClientConfig, ServerAccess
from agent.scrape.target import Target
from agent.signals import RUNNING
from tests.fakes.model_server import ModelServer, answer, good
from tests.scrape.authority import Authority
from tests.scrape.sinks import RecordingSink
from tests.waiting import eventually


class AheadClock(SystemClock):
    """The system clock, some seconds ahead."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


class ServerAccessRig:
    """A loop, a sink, servers and certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = AheadClock()
        self.loop = ScrapeLoop(self.clock)
        self.sink = RecordingSink()
        self.servers: list[ModelServer] = []
        self.heads: list[str] = []

    async def server(self, **settings: Any) -> ModelServer:
        server = ModelServer()
        await server.start(**settings)
        self.servers.append(server)
        return server

    def scrape(self, server: ModelServer, access: ServerAccess = PLAIN, **settings: Any) -> str:
        return self.scrape_at(server.port, access, **settings)

    def scrape_at(self, port: int, access: ServerAccess = PLAIN, **settings: Any) -> str:
        defaults: dict[str, Any] = {"interval": 0.05, "models_interval": 1e9, "health_path": ""}
        target = Target(f"127.0.0.1:{port}", "vllm", access=access, **{**defaults, **settings})
        self.loop.set_targets("pool", [target], self.sink)
        return target.address

    def tls(self, authority: Authority | None = None, **settings: Any) -> ServerAccess:
        ca_file = str(authority.file) if authority else ""
        return ServerAccess(HttpClientConfig(https=True, ca_file=ca_file, **settings))

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
async def rig(tmp_path: Path) -> AsyncIterator[ServerAccessRig]:
    made = ServerAccessRig(tmp_path)
    yield made
    await made.close()


async def test_a_server_is_scraped_by_tls_on_one_connection(rig: ServerAccessRig, authority: Authority) -> None:
    server = await rig.server(tls=authority.server(authority.sign("server")))
    address = rig.scrape(server, rig.tls(authority), health_path=None, health_interval=0.1)
    await rig.reads(address, 5)
    await eventually(lambda: "" in rig.sink.health_reasons.get(address, ()))
    assert server.connections == 1
    assert not rig.sink.failures


async def test_an_ipv6_address_is_verified_like_any_other(rig: ServerAccessRig, authority: Authority) -> None:
    server = await rig.server(tls=authority.server(authority.sign("six", "IP:::1")), host="::1")
    rig.loop.set_targets(
        "pool",
        [Target(f"[::1]:{server.port}", "vllm", interval=0.05, access=rig.tls(authority), health_path="")],
        rig.sink,
    )
    await rig.reads(f"[::1]:{server.port}")
    assert not rig.sink.failures


async def test_a_certificate_may_be_for_the_host_name_in_the_pool_or_for_the_configured_server_name(
    rig: ServerAccessRig, authority: Authority
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
        ("requires a client certificate", "tls_client", "write certFile and keyFile"),
    ],
)
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_failure_of_tls_has_a_reason_and_a_detail_with_what_to_write(
    tmp_path: Path, authority: Authority, case: str, reason: str, part: str, factory: Any
) -> None:
    """The agent runs on uvloop, which has its own TLS implementation."""

    async def run() -> tuple[str, str]:
        rig = ServerAccessRig(tmp_path)
        try:
            return await failure_of(rig, authority, case)
        finally:
            await rig.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        found, detail = runner.run(run())
    assert (found, part in detail) == (reason, True), (found, detail)


async def failure_of(rig: ServerAccessRig, authority: Authority, case: str) -> tuple[str, str]:
    """Reason and detail of the failed scrape in this case."""
    access = rig.tls(authority)
    tls = authority.server(authority.sign("server"))
    if case == "unknown authority":
        access = rig.tls(Authority(rig.folder, "stranger"))
    elif case == "expired":
        tls = authority.server(authority.sign("old", not_after="20200102000000Z"))
    elif case == "other name":
        tls = authority.server(authority.sign("other", "DNS:other.example"))
    elif case in ("no CA file", "bad CA file"):
        file = rig.folder / "ca.pem"
        if case == "bad CA file":
            file.write_text("no certificate")
        access = ServerAccess(HttpClientConfig(https=True, ca_file=str(file)))
    elif case == "plain server":
        async with await asyncio.start_server(refuse, "127.0.0.1") as plain:
            return await rig.fails(rig.scrape_at(plain.sockets[0].getsockname()[1], access))
    elif case == "requires a client certificate":
        async with requiring_client_certificates(authority) as port:
            return await rig.fails(rig.scrape_at(port, access))
    server = await rig.server(tls=tls)
    found = await rig.fails(rig.scrape(server, access))
    assert not rig.sink.pages
    return found


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The response of a plain server to a TLS handshake."""
    writer.write(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    await writer.drain()
    writer.close()


@asynccontextmanager
async def requiring_client_certificates(authority: Authority) -> AsyncIterator[int]:
    """A server that requires a client certificate by TLS 1.3, which asyncio's own does not; its port."""
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


async def test_a_tls_server_is_not_read_as_plain_http(rig: ServerAccessRig, authority: Authority) -> None:
    server = await rig.server(tls=authority.server(authority.sign("server")))
    reason, _ = await rig.fails(rig.scrape(server))
    assert reason in ("reset", "bad_http")


async def test_any_certificate_is_accepted_with_insecure_skip_verify(
    rig: ServerAccessRig, authority: Authority
) -> None:
    server = await rig.server(tls=authority.server(authority.sign("any", "DNS:any.example")))
    assert (await rig.fails(rig.scrape(server, rig.tls())))[0] == "tls_untrusted"
    address = rig.scrape(server, rig.tls(insecure_skip_verify=True))
    await rig.reads(address)
    assert rig.sink.pages[address][0][0].readings[RUNNING] == 4


async def test_a_client_certificate_is_sent_and_a_new_one_applies_to_new_connections(
    rig: ServerAccessRig, authority: Authority
) -> None:
    server = await rig.server(tls=authority.server(authority.sign("server"), requires_clients=True))
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


def requires(token: str) -> Any:
    """A server that requires this token."""

    async def behave(server: ModelServer, path: str, writer: asyncio.StreamWriter) -> None:
        if f"Authorization: Bearer {token}\r\n" in server.requests[-1].head:
            await good(server, path, writer)
        else:
            writer.write(answer(b"", "401 Unauthorized"))

    return behave


async def test_a_token_is_sent_with_every_request_and_a_new_one_with_the_next(rig: ServerAccessRig) -> None:
    file = rig.folder / "token"
    file.write_text("first\n")
    server = await rig.server()
    server.behave = requires("first")
    access = ServerAccess(HttpClientConfig(token_file=str(file)))
    address = rig.scrape(server, access, health_path=None, health_interval=0.1, models_interval=0.1)
    await eventually(lambda: address in rig.sink.models and "" in rig.sink.health_reasons.get(address, ()))
    assert address not in rig.sink.failures
    server.behave = requires("second")
    reason, detail = await rig.fails(address)
    assert (reason, detail) == ("status", f"HTTP 401: the server rejects the token in {file}")
    # As Kubernetes does: another file replaces it.
    (rig.folder / "new").write_text("second")
    (rig.folder / "new").replace(file)
    await rig.reads(address)
    assert server.connections <= 2 + len(rig.sink.failures[address])


async def test_a_request_without_a_token_that_is_rejected_has_a_detail_with_what_to_write(rig: ServerAccessRig) -> None:
    server = await rig.server()
    server.behave = requires("any")
    reason, detail = await rig.fails(rig.scrape(server))
    assert (reason, "write tokenFile" in detail) == ("status", True)


async def test_a_new_token_costs_one_failed_scrape_at_most(rig: ServerAccessRig) -> None:
    """Even though the file was checked just before, and is not due for a check."""
    file = rig.folder / "token"
    file.write_text("first")
    server = await rig.server()
    server.behave = requires("first")
    address = rig.scrape(server, ServerAccess(HttpClientConfig(token_file=str(file))))
    await rig.reads(address)
    file.write_text("second")
    server.behave = requires("second")
    await rig.reads(address)
    assert "Bearer second" in server.requests[-1].head
    assert len(rig.sink.failures.get(address, ())) <= 1


@pytest.mark.parametrize("content", [None, "", "\n", "two words", "\u00fc"])
async def test_a_token_file_without_a_token_is_reported_and_only_the_health_path_is_requested(
    rig: ServerAccessRig, content: str | None
) -> None:
    file = rig.folder / "token"
    if content is not None:
        file.write_text(content)
    server = await rig.server()
    address = rig.scrape(server, ServerAccess(HttpClientConfig(token_file=str(file))), health_path=None)
    reason, detail = await rig.fails(address)
    assert reason == "token_file"
    assert str(file) in detail
    assert set(server.paths) <= {"/health"}
    assert not any("Authorization" in request.head for request in server.requests)
    file.write_text("now there")
    file.write_text("nowthere")
    await rig.reads(address)


async def test_page_and_health_may_have_other_ports_than_requests(rig: ServerAccessRig) -> None:
    serving, page, health = await rig.server(), await rig.server(), await rig.server()
    address = rig.scrape(
        serving, path="/m", metrics_port=page.port, health_path="/health", health_port=health.port, health_interval=0.1,
        models_interval=0.1,
    )  # fmt: skip
    await rig.reads(address, 5)
    await eventually(lambda: address in rig.sink.models and rig.sink.health_reasons.get(address, []).count("") >= 2)
    assert set(serving.paths) == {"/v1/models"}
    assert set(page.paths) == {"/m"}
    assert set(health.paths) == {"/health"}
    assert {server.connections for server in rig.servers} == {1}


async def test_a_refused_health_port_is_not_a_failed_scrape(rig: ServerAccessRig, free_port: int) -> None:
    server = await rig.server()
    address = rig.scrape(server, health_path=None, health_port=free_port, health_interval=0.1)
    await rig.reads(address, 3)
    assert set(rig.sink.health_reasons[address]) == {"health_refused"}
    assert address not in rig.sink.failures


async def test_new_access_settings_apply_at_once(rig: ServerAccessRig, authority: Authority) -> None:
    plain, secret = await rig.server(), await rig.server(tls=authority.server(authority.sign("server")))
    address = rig.scrape(plain)
    await rig.reads(address)
    rig.scrape(plain, rig.tls(authority), metrics_port=secret.port)
    await eventually(lambda: secret.paths)
    await rig.reads(address)
    await eventually(lambda: not plain.writers)
    requested = len(plain.paths)
    await rig.reads(address)
    assert len(plain.paths) == requested
    assert not rig.sink.failures
