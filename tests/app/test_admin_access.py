"""`admin.auth` in a running agent: what it needs at the start, and who is answered afterwards."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from agent.app import admin_access
from agent.app.agent import Agent, ListenAddresses
from agent.app.component import CannotStart
from agent.app.process import greeting
from agent.app.vocabulary import VOCABULARY
from agent.clock import SystemClock
from agent.config import parse
from agent.events.access import AccessChecked, TokenFileProblem
from tests.app.live import Recorder
from tests.cluster.certificates import Authority, KeyPair

ALICE, BOB = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"


class AdminReader:
    """A running agent, and requests to its admin port."""

    def __init__(self, agent: Agent, recorder: Recorder, address: str, trusted: Path | None) -> None:
        self.agent = agent
        self.recorder = recorder
        self.url = f"{'http' if trusted is None else 'https'}://{address}"
        self._trusted = trusted

    async def status(self, path: str, token: str = "", pair: KeyPair | None = None) -> int:
        """The status of an answer, with a token and a client certificate."""
        tls: ssl.SSLContext | bool = True
        if self._trusted is not None:
            tls = ssl.create_default_context(cafile=str(self._trusted))
            if pair is not None:
                tls.load_cert_chain(pair.certificate, pair.key)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with aiohttp.ClientSession() as http, http.get(self.url + path, headers=headers, ssl=tls) as response:
            return response.status


@asynccontextmanager
async def started(admin: str, trusted: Path | None = None) -> AsyncIterator[AdminReader]:
    """An agent with this section `admin`, which listens on a free port of loopback."""
    clock = SystemClock()
    recorder = Recorder(clock)
    text = (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"pools:\n- {{extProcAddress: '127.0.0.1:0', endpoints: []}}\nadmin: {{address: '127.0.0.1:0', {admin}}}\n"
    )
    agent = Agent(parse(text, "x", VOCABULARY), clock, instruments=recorder)
    ports = await agent.start()
    try:
        yield AdminReader(agent, recorder, ports.admin, trusted)
    finally:
        await agent.stop(grace=0)


def write(file: Path, content: str | None) -> None:
    """Write a file, or remove it."""
    if content is None:
        file.unlink()
    else:
        file.write_text(content, encoding="utf-8")


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    file = tmp_path / "tokens.csv"
    file.touch(mode=0o600)
    file.write_text(f"{ALICE},alice\nshort,mallory\n", encoding="utf-8")
    return file


async def test_whose_token_is_in_the_file_is_answered(tokens: Path) -> None:
    async with started(f"auth: {{mode: tokenFile, tokenFile: {tokens}}}") as port:
        assert await port.status("/metrics", ALICE) == 200
        assert await port.status("/metrics", BOB) == 401
        assert await port.status("/metrics", "short") == 401
        assert await port.status("/healthz") == 200
        write(tokens, f"{BOB},bob\n")
        assert await port.status("/metrics", BOB) == 200
        assert await port.status("/metrics", ALICE) == 401
        (problem,) = port.recorder.of(TokenFileProblem)
        assert problem.detail.startswith(f"{tokens}:2 is ignored: the token has under 16 characters")


async def test_without_a_mode_everybody_is_answered_and_nothing_is_checked() -> None:
    async with started("auth: {}") as port:
        assert await port.status("/metrics") == 200
        assert port.recorder.of(AccessChecked) == []


async def test_a_client_certificate_is_a_user_beside_tokens_and_a_replaced_authority_counts_at_once(
    tokens: Path, tmp_path: Path
) -> None:
    authority = Authority(tmp_path, "ca")
    own = authority.server("own", ["127.0.0.1"])
    clients = tmp_path / "clients.crt"
    clients.write_bytes(authority.certificate.read_bytes())
    tls = f"certFile: {own.certificate}, keyFile: {own.key}, clientCaFile: {clients}, clientCertificate: optional"
    admin = f"tls: {{{tls}}}, auth: {{mode: tokenFile, tokenFile: {tokens}}}"
    async with started(admin, authority.certificate) as port:
        alice = authority.client("alice", "alice")
        assert await port.status("/metrics", pair=alice) == 200
        assert await port.status("/metrics", ALICE) == 200
        assert await port.status("/metrics") == 401
        assert [check.method for check in port.recorder.of(AccessChecked)] == ["client_certificate", "token", "none"]
        (tmp_path / "next").mkdir()
        clients.write_bytes(Authority(tmp_path / "next", "ca").certificate.read_bytes())
        # TLS may still accept the certificate in a connection; it authenticates no user any more.
        assert await port.status("/metrics", pair=alice) == 401


async def test_certificates_of_clients_without_the_package_that_verifies_them_are_refused_at_the_start(
    tokens: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path, "ca")
    own = authority.server("own", ["127.0.0.1"])
    monkeypatch.setattr(admin_access, "find_spec", lambda _: None)
    tls = f"certFile: {own.certificate}, keyFile: {own.key}, clientCaFile: {authority.certificate}"
    with pytest.raises(CannotStart, match=r"clientCaFile .*pip install 'inference-gateway-agent\[tls\]'"):
        async with started(f"tls: {{{tls}}}, auth: {{mode: tokenFile, tokenFile: {tokens}}}"):
            pass


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read: No such file or directory"), ("", "has no token; write a line"), ("short,x", "line 1: ")],
)
async def test_a_token_file_without_a_token_is_refused_at_the_start(
    tokens: Path, content: str | None, message: str
) -> None:
    write(tokens, content)
    with pytest.raises(CannotStart, match=f"admin.auth.tokenFile: .*tokens.csv.*{message}"):
        async with started(f"auth: {{mode: tokenFile, tokenFile: {tokens}}}"):
            pass


async def test_reviews_outside_a_cluster_are_refused_at_the_start() -> None:
    with pytest.raises(
        CannotStart, match=r"admin\.auth\.mode: kubernetes: no API server: .*; or write mode: tokenFile"
    ):
        async with started("auth: {mode: kubernetes}"):
            pass


@pytest.mark.parametrize(("address", "noted"), [("0.0.0.0:9090", True), ("127.0.0.1:9090", False)])
def test_an_address_that_everybody_can_read_is_named_at_the_start(address: str, *, noted: bool) -> None:
    text = (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"pools:\n- {{endpoints: ['127.0.0.1:1']}}\nadmin: {{address: '{address}', insecure: true}}\n"
    )
    lines = greeting(parse(text, "x", VOCABULARY), ListenAddresses(address, {"default": "127.0.0.1:9002"}), "1")
    assert ("  note: admin.insecure: everybody who reaches the admin address can read it" in lines) is noted
