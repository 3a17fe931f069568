"""The certificate of a port: from files that change, from itself, and what is refused."""

from __future__ import annotations

import asyncio
import itertools
import ssl
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from agent.config.tls import TlsConfig
from agent.events import Event
from agent.events.tls import CertificateInvalid, CertificateLoaded, CertificateNotLoaded
from agent.serve.tls import files
from agent.serve.tls.client import ClientFiles, ClientTls
from agent.serve.tls.files import TlsProblem
from agent.serve.tls.server import ADMIN, ServerTls
from agent.serve.tls.validity import Malformed, first_certificate, validity
from tests.fakes.clock import ManualClock
from tests.fakes.secret_mount import SecretMount
from tests.scrape.authority import Authority

DAY = 86400.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pairs(authority: Authority) -> list[tuple[Path, Path]]:
    return [authority.sign("one"), authority.sign("two")]


class Port:
    """The TLS of a port and what it has reported. Its wall clock shows the present."""

    def __init__(self, **options: Any) -> None:
        self.events: list[Event] = []
        self.clock = ManualClock()
        self.clock.set_wall(datetime.now(UTC).timestamp() - self.clock.wall())
        self.tls = ServerTls(TlsConfig(**options), ADMIN, hook=self.events.append, clock=self.clock)

    def served(self) -> str:
        """The common name of the certificate that a new connection gets."""
        certificate = x509.load_der_x509_certificate(served(self.tls.context))
        return str(certificate.subject.rfc4514_string())

    def reported(self, *kinds: type) -> list[Any]:
        return [event for event in self.events if type(event) in kinds]


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "127.0.0.1") -> tuple[Any, Any]:
    """A handshake in memory: the sides of the server and of the client."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (
        server.wrap_bio(there, back, server_side=True),
        client.wrap_bio(back, there, server_hostname=name),
    )
    waiting = set(sides)
    for side in itertools.chain.from_iterable(itertools.repeat(sides[::-1], 5)):
        if side in waiting:
            try:
                side.do_handshake()
                waiting.discard(side)
            except ssl.SSLWantReadError:
                continue
    assert not waiting
    return sides


def served(server: ssl.SSLContext) -> bytes:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    _, side = handshake(server, client)
    found: bytes = side.getpeercert(binary_form=True)
    return found


def mounted(tmp_path: Path, pair: tuple[Path, Path], **options: Any) -> tuple[SecretMount, Port]:
    mount = SecretMount(tmp_path / "secret")
    mount.write_pair(pair)
    return mount, Port(cert_file=mount.path("tls.crt"), key_file=mount.path("tls.key"), **options)


# -- files -------------------------------------------------------------------------------------------------------------


async def test_a_replaced_secret_is_served_to_new_connections(tmp_path, pairs):
    mount, port = mounted(tmp_path, pairs[0])
    port.tls.load()
    await port.tls.check()
    before = port.tls.context
    mount.write_pair(pairs[1])
    assert port.served() == "CN=one"
    await port.tls.check()
    assert port.served() == "CN=two"
    assert port.tls.context is not before  # a connection that is open keeps its own
    assert [type(event) for event in port.events] == [CertificateLoaded, CertificateLoaded]
    assert port.reported(CertificateLoaded)[-1].source.endswith("tls.crt")


async def test_files_that_are_written_one_after_the_other_are_taken_over_once_they_match(tmp_path, pairs):
    certificate, key = tmp_path / "c.pem", tmp_path / "c.key"
    (one, one_key), (two, two_key) = pairs
    certificate.write_bytes(one.read_bytes())
    key.write_bytes(one_key.read_bytes())
    port = Port(cert_file=str(certificate), key_file=str(key))
    port.tls.load()
    certificate.write_bytes(two.read_bytes()[:-100])
    await port.tls.check()
    certificate.write_bytes(two.read_bytes())
    await port.tls.check()
    assert port.served() == "CN=one"
    key.write_bytes(two_key.read_bytes())
    await port.tls.check()
    assert port.served() == "CN=two"
    assert port.reported(CertificateNotLoaded) == []


async def test_a_pair_that_does_not_match_keeps_the_old_one_and_is_reported_once(tmp_path, pairs):
    mount, port = mounted(tmp_path, pairs[0])
    port.tls.load()
    mount.write_pair((pairs[1][0], pairs[0][1]))
    for _ in range(4):
        await port.tls.check()
    assert port.served() == "CN=one"
    (refused,) = port.reported(CertificateNotLoaded)
    assert refused.why.startswith(f"admin.tls: {mount.path('tls.crt')} and {mount.path('tls.key')}: the key is not")
    mount.write_pair(pairs[1])
    await port.tls.check()
    assert port.served() == "CN=two"


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "c.pem cannot be read: No such file or directory"),
        ({"c.pem": b"", "c.key": b""}, "c.pem: there is no CERTIFICATE block; write a certificate in PEM format"),
        (
            {"c.pem": b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
            "it is not an X.509 certificate",
        ),
        ({"c.pem": b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n"}, "is not base64"),
        ({"c.key": b"nothing"}, "c.key: there is no private key in it; write it in PEM format"),
        ({"c.key": b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n"}, "c.key: the key is encrypted; write it without"),
        ({"c.key": b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}, "OpenSSL refuses them: "),
        ({"c.key": bytes((1 << 20) + 1)}, "c.key is larger than 1 MiB"),
        ({"ca.pem": b"nothing"}, "ca.pem: there are no CA certificates in it; write them in PEM format"),
        ({"ca.pem": b"\xff"}, "ca.pem: there are no CA certificates in it"),
    ],
)
def test_files_that_cannot_be_used_are_named_with_the_remedy(tmp_path, pairs, files, problem):
    if files:
        whole = {"c.pem": pairs[0][0].read_bytes(), "c.key": pairs[0][1].read_bytes(), "ca.pem": b""}
        for name, content in (whole | files).items():
            (tmp_path / name).write_bytes(content)
    port = Port(
        cert_file=str(tmp_path / "c.pem"),
        key_file=str(tmp_path / "c.key"),
        client_ca_file=str(tmp_path / "ca.pem") if "ca.pem" in files else "",
    )
    with pytest.raises(TlsProblem) as refused:
        port.tls.load()
    assert str(refused.value).startswith("admin.tls: ")
    assert problem in str(refused.value)


def test_files_that_change_while_they_are_read_are_read_again(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    found = iter([(1,), (2,), (2,), (2,)])
    monkeypatch.setattr(files, "fingerprint", lambda _: next(found))
    assert files.read([str(path)]) == [b"old"]
    assert list(found) == []
    endless = itertools.count()
    monkeypatch.setattr(files, "fingerprint", lambda _: (next(endless),))
    with pytest.raises(TlsProblem, match="being replaced"):
        files.read([str(path)])


async def test_an_expired_certificate_is_served_and_reported(tmp_path, authority):
    expired = authority.sign("old", not_after="20200201000000Z")
    _, port = mounted(tmp_path, expired)
    port.tls.load()
    for _ in range(3):
        await port.tls.check()
    (invalid,) = port.reported(CertificateInvalid)
    assert "tls.crt has expired: replace it, or set the clock" in invalid.why
    assert port.reported(CertificateLoaded)[0].valid_until == datetime(2020, 2, 1, tzinfo=UTC).timestamp()


async def test_a_certificate_that_expires_while_the_agent_runs_is_reported_when_it_does(tmp_path, pairs):
    _, port = mounted(tmp_path, pairs[0])
    port.tls.load()
    await port.tls.check()
    assert port.reported(CertificateInvalid) == []
    port.clock.advance(2 * DAY)
    await port.tls.check()
    port.clock.set_wall(-10 * DAY)
    await port.tls.check()
    assert [
        event.why.partition(": replace")[0].rpartition("tls.crt ")[2] for event in port.reported(CertificateInvalid)
    ] == [
        "has expired",
        "is not valid yet",
    ]


# -- self-signed -------------------------------------------------------------------------------------------------------


def test_a_self_signed_certificate_is_of_this_host_and_of_an_elliptic_curve():
    port = Port(self_signed=True)
    port.tls.load()
    found = x509.load_der_x509_certificate(served(port.tls.context))
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"localhost"} <= set(names.get_values_for_type(x509.DNSName))
    assert {"127.0.0.1", "::1"} <= set(map(str, names.get_values_for_type(x509.IPAddress)))
    key = found.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"
    assert not found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert port.reported(CertificateLoaded)[0].valid_until == found.not_valid_after_utc.timestamp()


async def test_a_self_signed_certificate_is_renewed_before_it_expires_and_when_the_clock_was_set():
    port = Port(self_signed=True)
    port.tls.load()
    first = served(port.tls.context)
    port.clock.advance(59 * DAY)
    await port.tls.check()
    assert served(port.tls.context) == first
    port.clock.advance(2 * DAY)
    await port.tls.check()
    second = served(port.tls.context)
    assert second != first
    port.clock.set_wall(-300 * DAY)
    await port.tls.check()
    assert served(port.tls.context) not in {first, second}
    assert port.reported(CertificateInvalid, CertificateNotLoaded) == []


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(TlsProblem, match=r"selfSigned needs the package cryptography: pip install .*\[tls\]"):
        Port(self_signed=True).tls.load()


# -- CAs of clients ----------------------------------------------------------------------------------------------------


def client_context(authority: Authority, pair: tuple[Path, Path] | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.file))
    if pair is not None:
        context.load_cert_chain(*pair)
    return context


async def test_the_cas_of_clients_change_for_new_connections(tmp_path, authority, pairs):
    other = Authority(tmp_path, "other")
    cert, key = map(str, pairs[0])
    port = Port(cert_file=cert, key_file=key)
    port.tls.set_client_cas(other.file.read_bytes())
    port.tls.load()
    one, two = client_context(authority, other.sign("alice")), client_context(authority, authority.sign("bob"))
    nobody = client_context(authority, None)
    assert b"alice" in handshake(port.tls.context, one)[0].getpeercert(binary_form=True)
    assert handshake(port.tls.context, nobody)[0].getpeercert(binary_form=True) is None
    with pytest.raises(ssl.SSLError):
        handshake(port.tls.context, two)
    port.tls.set_client_cas(other.file.read_bytes() + authority.file.read_bytes())
    assert b"bob" in handshake(port.tls.context, two)[0].getpeercert(binary_form=True)
    with pytest.raises(TlsProblem, match="the CAs of clients: there are no CA certificates"):
        port.tls.set_client_cas(b"nothing")
    assert b"bob" in handshake(port.tls.context, two)[0].getpeercert(binary_form=True)
    port.tls.set_client_cas(other.file.read_bytes(), required=True)
    with pytest.raises(ssl.SSLError, match="DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(port.tls.context, nobody)
    port.tls.set_client_cas(b"")
    assert handshake(port.tls.context, two)[0].getpeercert(binary_form=True) is None


@pytest.mark.parametrize("mode", ["required", "optional"])
async def test_the_file_of_client_cas_is_read_again_when_it_changes(tmp_path, authority, pairs, mode):
    ca = tmp_path / "ca.pem"
    ca.write_bytes(Authority(tmp_path, "other").file.read_bytes())
    cert, key = map(str, pairs[0])
    port = Port(cert_file=cert, key_file=key, client_ca_file=str(ca), client_certificate=mode)
    port.tls.load()
    client = client_context(authority, authority.sign("carol"))
    with pytest.raises(ssl.SSLError):
        handshake(port.tls.context, client)
    ca.write_bytes(authority.file.read_bytes())
    await port.tls.check()
    assert b"carol" in handshake(port.tls.context, client)[0].getpeercert(binary_form=True)
    expected = ssl.CERT_REQUIRED if mode == "required" else ssl.CERT_OPTIONAL
    assert port.tls.context.verify_mode is expected


# -- a client's context ------------------------------------------------------------------------------------------------


async def test_the_context_of_a_client_verifies_the_server_and_takes_over_changed_files(tmp_path, authority, pairs):
    server = Port(cert_file=str(pairs[0][0]), key_file=str(pairs[0][1]), client_ca_file=str(authority.file))
    server.tls.load()
    mount = SecretMount(tmp_path / "secret")
    mount.write_pair(pairs[1], ca_crt=Authority(tmp_path, "other").file.read_bytes())
    cert, key, ca = (mount.path(name) for name in ("tls.crt", "tls.key", "ca.crt"))
    client = ClientTls(ClientFiles(cert, key, ca, alpn="http/1.1"))
    client.load()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server.tls.context, client.context)
    mount.write_pair(pairs[1], ca_crt=authority.file.read_bytes())
    await client.check()
    there, here = handshake(server.tls.context, client.context)
    assert here.selected_alpn_protocol() == "http/1.1"
    assert b"two" in there.getpeercert(binary_form=True)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(server.tls.context, client.context, "192.0.2.1")
    mount.write({"tls.crt": b"", "tls.key": b"", "ca.crt": b"nothing"})
    with pytest.raises(TlsProblem, match=r"ca\.crt: there are no CA certificates"):
        await client.check()
    handshake(server.tls.context, client.context)
    unverified = ClientTls(ClientFiles(cert, key, verify=False))
    mount.write_pair(pairs[1])
    unverified.load()
    handshake(server.tls.context, unverified.context, "192.0.2.1")


# -- dates -------------------------------------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP256R1())
MOMENTS = st.datetimes(datetime(1950, 1, 1), datetime(9999, 12, 31)).map(lambda when: when.replace(microsecond=0))  # noqa: DTZ001


def dated(begins: datetime, ends: datetime) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x" * 60)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1 << 150)
        .not_valid_before(begins)
        .not_valid_after(ends)
        .sign(KEY, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


@given(MOMENTS, MOMENTS)
def test_the_dates_are_those_that_cryptography_reads(one: datetime, other: datetime):
    begins, ends = sorted((one, other))
    pem = b"a comment\n" + dated(begins, ends)
    found = validity(first_certificate(pem))
    made = x509.load_pem_x509_certificate(pem)
    assert found == (made.not_valid_before_utc.timestamp(), made.not_valid_after_utc.timestamp())


DER = first_certificate(dated(datetime(2026, 1, 1), datetime(2027, 1, 1)))  # noqa: DTZ001


@given(st.binary(max_size=200) | st.integers(0, len(DER)).map(lambda end: DER[:end]) | st.builds(
    lambda at, byte: DER[:at] + bytes([byte]) + DER[at + 1 :], st.integers(0, len(DER) - 1), st.integers(0, 255)
))  # fmt: skip
def test_bytes_that_are_no_certificate_have_dates_or_are_malformed(der: bytes):
    try:
        found = validity(der)
    except Malformed:
        return
    assert all(isinstance(when, float) for when in found)


def test_a_context_is_not_available_before_the_certificate_is_loaded():
    making: list[Callable[[], object]] = [
        lambda: Port(self_signed=True).tls.context,
        lambda: ClientTls(ClientFiles()).context,
    ]
    for make in making:
        with pytest.raises(RuntimeError, match=r"load\(\) comes first"):
            make()
    asyncio.run(Port(self_signed=True).tls.check())
