"""TLS of the HTTP server and of the gRPC listener, with curl, openssl and grpcio as clients."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import grpc.aio
import pytest
from aiohttp import web
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from agent.config.tls import TlsConfig
from agent.events import Event
from agent.events.tls import REASONS, CertificateInvalid, CertificateLoaded, CertificateNotLoaded, HandshakeFailed
from agent.instruments.event_log import EventLog
from agent.instruments.hook import Instruments
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import GrpcRouter
from agent.serve.http.responses import json_response, text_response
from agent.serve.http.server import HttpRoute, HttpServer
from agent.serve.tls import connection as tls_connection
from agent.serve.tls.connection import PlainAcceptor, TlsAcceptor
from agent.serve.tls.server import ADMIN, PICKER, ServerTls, TlsPort, peer_certificate
from tests.fakes.clock import ManualClock
from tests.fakes.late_transport import LateTransport
from tests.grpc.services import ECHO, EchoService
from tests.scrape.authority import Authority
from tests.waiting import eventually

LARGE = 5_000_000


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> tuple[Path, Path]:
    return authority.sign("igw", "IP:127.0.0.1,DNS:localhost")


class Done(NamedTuple):
    """A program that has ended: its exit status and its output."""

    status: int
    out: bytes
    errors: str


async def program(*command: object, given: bytes = b"") -> Done:
    started = await asyncio.create_subprocess_exec(
        *map(str, command),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await asyncio.wait_for(started.communicate(given), 30)
    return Done(started.returncode or 0, out, errors.decode())


class Served:
    """A server of a few pages, with TLS or without, and what it has reported."""

    def __init__(
        self, authority: Authority, pair: tuple[Path, Path], *, plaintext: bool = False, **options: Any
    ) -> None:
        self.authority = authority
        self.events: list[Event] = []
        self.port = 0
        self.tls = server_tls(pair, ADMIN, self.events.append, **options)
        routes = [HttpRoute("/who", self.who), HttpRoute("/large", self.large)]
        self.server = HttpServer(
            "127.0.0.1:0", routes, self.events.append,
            tls=None if plaintext else self.tls,
        )  # fmt: skip

    async def who(self, request: web.Request) -> web.Response:
        der = peer_certificate(request.transport)
        name = x509.load_der_x509_certificate(der).subject.rfc4514_string() if der else ""
        return json_response({"scheme": request.scheme, "client": name})

    async def large(self, request: web.Request) -> web.Response:
        return text_response("x" * LARGE)

    def failures(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, HandshakeFailed)]

    async def curl(self, path: str, *options: object, scheme: str = "https") -> Done:
        url = f"{scheme}://127.0.0.1:{self.port}{path}"
        return await program("curl", "-sS", "--cacert", self.authority.file, *options, url)

    async def openssl(self, *options: str, given: bytes = b"") -> Done:
        address = f"127.0.0.1:{self.port}"
        return await program(
            "openssl", "s_client", "-connect", address, "-cipher", "DEFAULT:@SECLEVEL=0", *options, given=given
        )


def server_tls(pair: tuple[Path, Path], port: TlsPort, hook: Callable[[Event], None], **options: Any) -> ServerTls:
    if not options.get("self_signed"):
        options |= {"cert_file": str(pair[0]), "key_file": str(pair[1])}
    made = ServerTls(TlsConfig(**options), port, hook=hook, clock=ManualClock())
    made.load()
    return made


@pytest.fixture
async def serve(authority: Authority, pair: tuple[Path, Path]) -> AsyncIterator[Callable[..., Any]]:
    """Starts servers, which stop at the end of the test."""
    async with contextlib.AsyncExitStack() as stack:

        async def started(**options: Any) -> Served:
            served = Served(authority, pair, **options)
            served.port = await served.server.start()
            stack.push_async_callback(served.server.stop)
            return served

        yield started


# -- HTTP --------------------------------------------------------------------------------------------------------------


async def test_a_client_that_trusts_the_ca_gets_its_pages_over_one_connection(serve):
    served = await serve()
    done = await served.curl(
        "/large", "-o", "/dev/null", "-w", "%{num_connects} ", f"https://127.0.0.1:{served.port}/who"
    )
    assert (done.status, done.errors) == (0, "")
    assert done.out == b"1 " + b"x" * LARGE + b"0 "  # the number of new connections behind each page
    assert (await served.curl("/who")).out == b'{"scheme":"https","client":""}'
    assert served.failures() == []


async def test_a_client_that_does_not_trust_the_certificate_is_counted(serve):
    served = await serve(self_signed=True)
    assert (await served.curl("/who")).status == 60
    assert (await served.curl("/who", "--insecure")).status == 0
    assert await eventually(served.failures) == ["not_trusted"]


@pytest.mark.parametrize(
    ("options", "client", "accepted"),
    [
        ({}, "-tls1_1", False),
        ({}, "-tls1_2", True),
        ({}, "-tls1_3", True),
        ({"min_version": "TLSv1.3"}, "-tls1_2", False),
        ({"min_version": "TLSv1.3"}, "-tls1_3", True),
    ],
)
async def test_an_older_version_of_tls_is_refused_with_the_alert_that_states_it(serve, options, client, accepted):
    served = await serve(**options)
    done = await served.openssl(client)
    assert (done.status == 0) == accepted
    assert ("alert protocol version" in done.errors) == (not accepted)
    assert served.failures() == ([] if accepted else ["version"])


async def test_a_cipher_without_forward_secrecy_is_refused(serve):
    served = await serve()
    done = await program(
        "openssl", "s_client", "-connect", f"127.0.0.1:{served.port}", "-tls1_2", "-cipher", "AES128-SHA"
    )
    assert "alert handshake failure" in done.errors
    assert served.failures() == ["version"]


async def test_renegotiation_is_refused(serve):
    served = await serve()
    done = await served.openssl("-tls1_2", given=b"R\n")
    assert "no renegotiation" in done.errors


async def test_the_protocol_is_negotiated(serve):
    served = await serve()
    assert b"ALPN protocol: http/1.1" in (await served.openssl("-alpn", "h2,http/1.1")).out
    assert b"No ALPN negotiated" in (await served.openssl("-alpn", "h2")).out


async def test_no_ticket_of_a_session_outlives_a_change_of_the_certificate_or_of_the_cas(serve):
    served = await serve()
    for version in ("-tls1_2", "-tls1_3"):
        assert b"session ticket" not in (await served.openssl(version, given=b"Q\n")).out


async def test_a_plaintext_client_learns_what_to_use_and_is_counted(serve):
    served = await serve()
    done = await served.curl("/who", scheme="http")
    assert done.out == b"this port speaks TLS: use https://\n"
    assert served.failures() == ["plaintext"]


async def test_a_tls_client_of_a_plaintext_port_is_counted_and_others_are_served(serve):
    served = await serve(plaintext=True)
    assert (await served.curl("/who")).status == 35
    assert (await served.curl("/who", scheme="http")).out == b'{"scheme":"http","client":""}'
    assert served.failures() == ["tls"]


async def test_a_client_certificate_is_required_or_optional_and_known_to_handlers(serve, authority, tmp_path):
    ca = str(authority.file)
    alice, bob = authority.sign("alice"), Authority(tmp_path, "other").sign("bob")
    required = await serve(client_ca_file=ca)
    optional = await serve(client_ca_file=ca, client_certificate="optional")
    with_alice = ("--cert", alice[0], "--key", alice[1])
    for served in (required, optional):
        assert (await served.curl("/who", *with_alice)).out == b'{"scheme":"https","client":"CN=alice"}'
        refused = await served.curl("/who", "--cert", bob[0], "--key", bob[1])
        assert "alert" in refused.errors
    assert "alert" in (await required.curl("/who")).errors
    assert (await optional.curl("/who")).out == b'{"scheme":"https","client":""}'
    assert required.failures() == ["client_certificate", "no_client_certificate"]
    assert optional.failures() == ["client_certificate"]


async def test_idle_connections_do_not_stop_others(serve):
    served = await serve()
    count = tls_connection.MAX_HANDSHAKES + 50
    idle = [await asyncio.open_connection("127.0.0.1", served.port) for _ in range(count)]
    assert (await served.curl("/who")).status == 0
    assert await eventually(lambda: len(served.failures()) >= 50 and served.failures())
    assert set(served.failures()) == {"too_many"}
    await served.server.stop()
    for reader, writer in idle:
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_handshake_that_does_not_end_is_ended(serve, monkeypatch):
    monkeypatch.setattr(tls_connection, "HANDSHAKE_SECONDS", 0.05)
    served = await serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(b"\x16\x03\x01")
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 10) == b""
    assert served.failures() == ["timeout"]
    writer.close()


async def test_a_client_that_leaves_during_the_handshake_is_counted(serve):
    served = await serve()
    _, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.close()
    assert await eventually(served.failures) == ["closed"]


async def test_a_connection_that_the_server_closes_ends_with_the_notice_of_its_end(serve, authority):
    served = await serve()
    context = ssl.create_default_context(cafile=str(authority.file))
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=context)
    writer.write(b"GET /who HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await asyncio.wait_for(reader.read(), 10)).endswith(b'"client":""}')  # no error: it is not cut off
    writer.close()


# -- gRPC --------------------------------------------------------------------------------------------------------------


class EchoPort:
    """A gRPC listener with TLS."""

    def __init__(self, tls: ServerTls | None, events: list[Event]) -> None:
        self.tls = tls
        self.events = events
        self.service = EchoService()
        self.connection_failures: list[str] = []
        router = GrpcRouter((self.service,), lambda *_: None)
        self.listener = GrpcListener(router, self.connection_failures.append, tls)
        self.port = 0

    def channel(self, authority: Authority, client: tuple[Path, Path] | None = None) -> Any:
        certificate, key = (path.read_bytes() for path in client) if client else (None, None)
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes(), key, certificate)
        return grpc.aio.secure_channel(f"localhost:{self.port}", credentials)

    def failures(self) -> list[str]:
        return [event.reason for event in self.events if isinstance(event, HandshakeFailed)]


@contextlib.asynccontextmanager
async def echo_port(pair: tuple[Path, Path] | None, **options: Any) -> AsyncIterator[EchoPort]:
    events: list[Event] = []
    made = EchoPort(server_tls(pair, PICKER, events.append, **options) if pair else None, events)
    made.port = await made.listener.listen("127.0.0.1", 0)
    try:
        yield made
    finally:
        made.listener.goaway()
        await made.listener.close()


async def unary(channel: Any, request: bytes) -> bytes:
    response: bytes = await channel.unary_unary(f"/{ECHO}/Unary")(request, timeout=20)
    return response


async def test_grpcio_calls_over_tls_and_many_messages_at_once(authority, pair):
    async with echo_port(pair) as port, port.channel(authority) as channel:
        bodies = [bytes([number % 256]) * 900 + b"end" for number in range(300)]
        assert await asyncio.gather(*(unary(channel, body) for body in bodies)) == [body[::-1] for body in bodies]
        bidi = channel.stream_stream(f"/{ECHO}/Bidi")(timeout=20)
        for message in (b"ab", b"", b"c" * 1500):
            await bidi.write(message)
            assert await bidi.read() == message[::-1]
        await bidi.done_writing()
        assert await bidi.read() is grpc.aio.EOF
        assert (port.failures(), port.connection_failures) == ([], [])


async def test_a_grpc_client_needs_the_certificate_that_the_port_requires(authority, pair):
    async with echo_port(pair, client_ca_file=str(authority.file)) as port:
        async with port.channel(authority, authority.sign("envoy")) as channel:
            assert await unary(channel, b"abc") == b"cba"
        async with port.channel(authority) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await unary(channel, b"abc")
            assert failed.value.code() is grpc.StatusCode.UNAVAILABLE
        assert set(port.failures()) == {"no_client_certificate"}


async def test_a_call_continues_while_the_certificate_is_replaced(authority, pair, tmp_path):
    certificate, key = tmp_path / "c.pem", tmp_path / "c.key"
    certificate.write_bytes(pair[0].read_bytes())
    key.write_bytes(pair[1].read_bytes())
    async with echo_port((certificate, key)) as port, port.channel(authority) as channel:
        bidi = channel.stream_stream(f"/{ECHO}/Bidi")(timeout=20)
        await bidi.write(b"ab")
        assert await bidi.read() == b"ba"
        other = authority.sign("other", "DNS:localhost")
        key.write_bytes(other[1].read_bytes())
        certificate.write_bytes(other[0].read_bytes())
        assert port.tls is not None
        await port.tls.check()
        await bidi.write(b"cd")
        assert await bidi.read() == b"dc"
        done = await program("openssl", "s_client", "-connect", f"127.0.0.1:{port.port}", "-alpn", "h2")
        assert b"CN = other" in done.out
        assert b"ALPN protocol: h2" in done.out


async def test_a_plaintext_grpc_client_of_a_tls_port_is_counted(authority, pair):
    async with echo_port(pair) as port, grpc.aio.insecure_channel(f"127.0.0.1:{port.port}") as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(channel, b"abc")
        assert set(port.failures()) == {"plaintext"}


async def test_a_tls_grpc_client_of_a_plaintext_port_is_reported_with_the_remedy(authority):
    async with echo_port(None) as port, port.channel(authority) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await unary(channel, b"abc")
        assert set(port.connection_failures) == {REASONS["tls"]}


# -- the bytes ---------------------------------------------------------------------------------------------------------


class FakeSocket(asyncio.Transport):
    """The socket's transport: it keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Echo(asyncio.Protocol):
    """Sends everything back, and counts the calls with data."""

    def __init__(self) -> None:
        self.calls = 0
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.calls += 1
        self.transport.write(data)


@pytest.fixture(scope="module")
def contexts(authority: Authority, pair: tuple[Path, Path]) -> tuple[ServerTls, ssl.SSLContext]:
    return server_tls(pair, ADMIN, lambda _: None), ssl.create_default_context(cafile=str(authority.file))


class InMemory:
    """A client and a connection of the server, with no socket between them."""

    def __init__(self, contexts: tuple[ServerTls, ssl.SSLContext]) -> None:
        tls, client = contexts
        self.echo = Echo()
        self.connection: Any = TlsAcceptor(tls, lambda: self.echo)()
        self.socket = FakeSocket()
        self.connection.connection_made(self.socket)
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self.incoming, self.outgoing, server_hostname="127.0.0.1")

    def exchange(self, cuts: list[int]) -> None:
        """Carry what each side has written to the other; the client's bytes in pieces that end at `cuts`."""
        data = self.outgoing.read()
        ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
        for start, end in itertools.pairwise(ends):
            self.connection.data_received(data[start:end])
        self.incoming.write(bytes(self.socket.written))
        self.socket.written.clear()

    def connect(self, cuts: list[int]) -> None:
        for _ in range(4):
            with contextlib.suppress(ssl.SSLWantReadError):
                self.client.do_handshake()
            self.exchange(cuts)
        self.client.do_handshake()

    def read_all(self) -> bytes:
        found = bytearray()
        with contextlib.suppress(ssl.SSLWantReadError):
            while chunk := self.client.read(1 << 16):
                found += chunk
        return bytes(found)


@given(st.lists(st.integers(0, 1 << 20), max_size=30), st.lists(st.integers(0, 70_000), min_size=1, max_size=5))
def test_bytes_arrive_whole_however_the_network_cuts_them(contexts, cuts: list[int], sizes: list[int]):
    async def run() -> None:
        sides = InMemory(contexts)
        sides.connect(cuts)
        for number, size in enumerate(sizes):
            message = bytes([number]) * size
            if message:
                sides.client.write(message)
            sides.exchange(cuts)
            assert sides.read_all() == message
        with contextlib.suppress(ssl.SSLWantReadError):
            sides.client.unwrap()
        sides.exchange(cuts)
        assert sides.socket.closed
        sides.connection.connection_lost(None)

    asyncio.run(run())


async def test_what_one_read_brings_in_is_handed_on_at_once(contexts):
    sides = InMemory(contexts)
    sides.connect([])
    for _ in range(10):
        sides.client.write(b"x" * 100)
    sides.exchange([])
    assert (sides.echo.calls, sides.read_all()) == (1, b"x" * 1000)
    sides.connection.connection_lost(None)


async def test_bytes_that_are_not_tls_after_the_handshake_close_the_connection(contexts):
    sides = InMemory(contexts)
    sides.connect([])
    sides.connection.data_received(b"GET / HTTP/1.1\r\n\r\n")
    assert sides.socket.closed
    sides.echo.transport.write(b"late")
    sides.echo.transport.close()
    assert sides.echo.transport.is_closing()
    sides.connection.connection_lost(None)


# -- log lines ---------------------------------------------------------------------------------------------------------


def instruments_with_log() -> Instruments:
    """Instruments whose lines go to a logger of their own, since others may have changed the agent's."""
    clock = ManualClock()
    logger = logging.getLogger("test_tls_connections")
    logger.setLevel(logging.INFO)
    return Instruments(clock, EventLog(clock, logger))


def test_each_reason_is_counted_and_has_a_log_line_with_the_remedy(caplog):
    instruments = instruments_with_log()
    for reason in REASONS:
        for _ in range(3):
            instruments(HandshakeFailed("ext_proc", reason, "detail", "192.0.2.1"))
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [
        f"connection to port ext_proc failed: {text} (detail), client 192.0.2.1"
        for reason, text in REASONS.items()
        if reason != "closed"  # load balancers check a port by opening a connection
    ]
    for reason in REASONS:
        labels = {"port": "ext_proc", "reason": reason}
        assert instruments.registry.get_sample_value("igw_tls_handshake_failures_total", labels) == 3.0


def test_a_certificate_s_dates_are_gauges_and_a_refused_one_is_counted(caplog):
    instruments = instruments_with_log()
    instruments(CertificateLoaded("admin", "tls.crt", 1_000.0, 2_000_000_000.0))
    instruments(CertificateNotLoaded("admin", "admin.tls: tls.key: the key is encrypted"))
    instruments(CertificateInvalid("admin", "admin.tls: tls.crt has expired: replace it"))
    page = instruments.registry
    assert page.get_sample_value("igw_tls_certificate_start_time_seconds", {"port": "admin"}) == 1_000.0
    assert page.get_sample_value("igw_tls_certificate_expiry_time_seconds", {"port": "admin"}) == 2_000_000_000.0
    for result in ("ok", "failed"):
        assert page.get_sample_value("igw_tls_certificate_loads_total", {"port": "admin", "result": result}) == 1.0
    assert [record.getMessage() for record in caplog.records] == [
        "port admin serves TLS with tls.crt, valid until 2033-05-18 03:33 UTC",
        "certificate not replaced, the old one stays: admin.tls: tls.key: the key is encrypted",
        "admin.tls: tls.crt has expired: replace it",
    ]


class Unopened(asyncio.Protocol):
    """A protocol that no connection is to reach."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        pytest.fail("the port has ended")

    def connection_lost(self, exc: Exception | None) -> None:
        pytest.fail("it had no connection")


@pytest.mark.parametrize("over_tls", [False, True])
async def test_a_connection_accepted_before_the_end_and_opened_after_it_is_aborted(
    pair: tuple[Path, Path], over_tls: bool
) -> None:
    acceptor: TlsAcceptor | PlainAcceptor = PlainAcceptor("admin", lambda _: None, Unopened)
    if over_tls:
        acceptor = TlsAcceptor(server_tls(pair, ADMIN, lambda _: None), Unopened)
    late = acceptor()
    acceptor.close()
    transport = LateTransport()
    late.connection_made(transport)
    assert transport.aborted
    late.connection_lost(None)
