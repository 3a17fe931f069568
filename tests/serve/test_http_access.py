"""Who may read an HTTP server: the public routes, the answers to everybody else, and client certificates over TLS."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
from aiohttp import web

from agent.clock import SystemClock
from agent.config.tls import TlsConfig
from agent.events import Event, ignore
from agent.kube.authn.access import Access
from agent.kube.authn.certificates import CaBundle
from agent.kube.authn.identity import CannotCheck, FrontProxyTrust, Trust, UserIdentity
from agent.kube.authn.reviews import AccessAnswer, Attributes
from agent.serve.http.access import PathAccess
from agent.serve.http.responses import json_response
from agent.serve.http.server import HttpRoute, HttpServer
from agent.serve.tls.server import ADMIN, ServerTls
from tests.cluster.certificates import Authority, KeyPair


class Reviewer:
    """Tokens are names of users; `allowed` are the paths that each may read."""

    def __init__(self) -> None:
        self.allowed = {"alice": {"/metrics", "/item/a"}}
        self.unavailable = False
        self.reviewed: list[tuple[UserIdentity, str]] = []

    async def identity_of(self, token: str) -> UserIdentity | str:
        if self.unavailable:
            raise CannotCheck("the API server is gone")
        return UserIdentity(token) if token in {"alice", "bob"} else "unknown token"

    async def may(self, identity: UserIdentity, attributes: Attributes) -> AccessAnswer:
        path = str(attributes).split('"')[1]
        self.reviewed.append((identity, path))
        return AccessAnswer(path in self.allowed.get(identity.user, ()), "")


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    code: str
    message: str
    headers: Mapping[str, str]


class Guarded:
    """A server of a few pages with a reviewer."""

    def __init__(self, *, tls: ServerTls | None = None, trust: Trust | None = None) -> None:
        self.reviewer = Reviewer()
        self.events: list[Event] = []
        self.handled: list[str] = []
        access = Access(self.reviewer, self.reviewer, SystemClock(), self.events.append, lambda: trust or Trust())
        routes = [
            HttpRoute("/healthz", self.page, public=True),
            HttpRoute("/metrics", self.page),
            HttpRoute("/item/{name}", self.page),
            HttpRoute("/stream", self.page, streamed=True),
        ]
        self.server = HttpServer("127.0.0.1:0", routes, self.events.append, authorize=PathAccess(access), tls=tls)
        self.url = ""

    async def page(self, request: web.Request) -> web.Response:
        self.handled.append(request.path)
        return json_response("page")

    async def get(
        self, path: str, token: str = "", *, method: str = "GET", tls: ssl.SSLContext | bool = True, **headers: str
    ) -> Answer:
        credentials = {"Authorization": f"Bearer {token}"} if token else {}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        async with (
            aiohttp.ClientSession() as http,
            http.request(method, self.url + path, headers=credentials | names, ssl=tls) as response,
        ):
            content: Any = await response.json() if method == "GET" else {}
            error = content.get("error", {}) if isinstance(content, dict) else {}
            return Answer(response.status, error.get("code", ""), error.get("message", ""), response.headers.copy())

    async def send(self, path: str, token: str) -> bytes:
        """The answer to a request whose path is sent as it is."""
        reader, writer = await asyncio.open_connection(*self.url.removeprefix("http://").split(":"))
        head = f"GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n"
        writer.write(f"{head}Authorization: Bearer {token}\r\n\r\n".encode())
        answer = await reader.read()
        writer.close()
        return answer


@pytest.fixture
async def guarded() -> AsyncIterator[Guarded]:
    one = Guarded()
    one.url = f"http://127.0.0.1:{await one.server.start()}"
    yield one
    await one.server.stop()


async def test_a_public_route_is_answered_to_everybody_and_nothing_is_checked(guarded):
    assert (await guarded.get("/healthz")).status == 200
    assert (await guarded.get("/healthz", "wrong")).status == 200
    assert guarded.events == []


async def test_without_a_token_the_answer_is_401_with_a_challenge(guarded):
    answer = await guarded.get("/metrics")
    assert (answer.status, answer.code) == (401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert answer.message == "send a bearer token in the Authorization header"
    assert guarded.handled == []


async def test_a_token_that_is_not_accepted_gets_401(guarded):
    answer = await guarded.get("/metrics", "mallory")
    assert (answer.status, answer.message) == (401, "the token is not accepted")


async def test_a_user_without_the_right_gets_403_with_who_and_what(guarded):
    answer = await guarded.get("/metrics", "bob")
    assert (answer.status, answer.code) == (403, "forbidden")
    assert answer.message == 'user "bob" cannot get path "/metrics"; grant it with RBAC'
    assert guarded.handled == []


async def test_where_nobody_can_be_checked_the_answer_is_503(guarded):
    guarded.reviewer.unavailable = True
    answer = await guarded.get("/metrics", "alice")
    assert (answer.status, answer.code, answer.headers["Retry-After"]) == (503, "cannot_authenticate", "1")
    assert (await guarded.get("/healthz")).status == 200
    assert guarded.handled == ["/healthz"]


async def test_a_user_with_the_right_is_answered(guarded):
    assert (await guarded.get("/metrics", "alice")).status == 200
    assert (await guarded.get("/metrics", "alice", method="HEAD")).status == 200
    assert guarded.handled == ["/metrics", "/metrics"]


async def test_a_route_with_a_name_is_decided_by_its_path(guarded):
    assert (await guarded.get("/item/a", "alice")).status == 200
    assert (await guarded.get("/item/b", "alice")).status == 403


@pytest.mark.parametrize("path", ["/", "/nothing", "/stream", "/healthz/", "/healthz/../metrics", "//healthz"])
async def test_every_other_path_needs_credentials_also_one_without_a_page(guarded, path):
    assert (await guarded.get(path)).status == 401


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS"])
async def test_another_method_needs_credentials_first(guarded, method):
    assert (await guarded.get("/metrics", method=method)).status == 401


@pytest.mark.parametrize("path", ["/%6Detrics", "/metrics?x=/healthz", "/%2e%2e/metrics", "/healthz%2f..%2fmetrics"])
async def test_no_spelling_of_a_path_is_decided_as_another_one_than_it_is_answered_as(guarded, path):
    answer = await guarded.send(path, "bob")
    assert answer.split(b" ")[1] == b"403"
    assert guarded.handled == []


async def test_identity_headers_of_a_client_are_worth_nothing(guarded):
    answer = await guarded.get("/metrics", X_Remote_User="alice", X_Remote_Group="system:masters")
    assert answer.status == 401
    answer = await guarded.get("/metrics", "bob", X_Remote_User="alice")
    assert answer.status == 403
    assert guarded.reviewer.reviewed == [(UserIdentity("bob"), "/metrics")]


async def test_headers_over_the_limit_are_refused_before_they_are_checked(guarded):
    answer = await guarded.send("/metrics", "a" * 20_000)
    assert answer.split(b" ")[1] == b"400"
    assert guarded.events == []


# -- over TLS ----------------------------------------------------------------------------------------------------------


class Signed(NamedTuple):
    """A server over TLS that trusts a front proxy and an authority of clients, and certificates of both."""

    guarded: Guarded
    folder: Path
    front_proxy: Authority
    clients: Authority

    def context(self, pair: KeyPair | None = None) -> ssl.SSLContext:
        """The TLS of a client with this certificate."""
        context = ssl.create_default_context(cafile=str(self.clients.certificate))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context


@pytest.fixture
async def signed(tmp_path: Path) -> AsyncIterator[Signed]:
    front_proxy, clients = Authority(tmp_path, "front-proxy-ca"), Authority(tmp_path, "ca")
    own = clients.server("server", ["127.0.0.1"])
    config = TlsConfig(cert_file=str(own.certificate), key_file=str(own.key))
    tls = ServerTls(config, ADMIN, hook=ignore, clock=SystemClock())
    tls.load()
    proxy = CaBundle(front_proxy.certificate.read_bytes())
    clients_bundle = CaBundle(clients.certificate.read_bytes())
    trust = Trust(
        FrontProxyTrust(proxy, frozenset({"front-proxy-client"}), ("X-Remote-User",), ("X-Remote-Group",)),
        clients_bundle,
    )
    tls.set_client_cas(trust.pem)
    guarded = Guarded(tls=tls, trust=trust)
    guarded.url = f"https://127.0.0.1:{await guarded.server.start()}"
    yield Signed(guarded, tmp_path, front_proxy, clients)
    await guarded.server.stop()


async def test_a_token_is_accepted_over_tls_without_a_client_certificate(signed):
    assert (await signed.guarded.get("/metrics", "alice", tls=signed.context())).status == 200


async def test_the_front_proxy_names_the_user(signed):
    proxy = signed.context(signed.front_proxy.client("proxy", "front-proxy-client"))
    headers = {"X_Remote_User": "alice", "X_Remote_Group": "dev"}
    assert (await signed.guarded.get("/metrics", tls=proxy, **headers)).status == 200
    assert signed.guarded.reviewer.reviewed == [(UserIdentity("alice", ("dev",), method="front_proxy"), "/metrics")]
    assert (await signed.guarded.get("/metrics", tls=proxy)).status == 401


async def test_a_client_certificate_names_the_user_and_headers_beside_it_nobody(signed):
    alice = signed.context(signed.clients.client("alice", "alice", ["dev"]))
    assert (await signed.guarded.get("/metrics", tls=alice)).status == 200
    bob = signed.context(signed.clients.client("bob", "bob"))
    assert (await signed.guarded.get("/metrics", tls=bob, X_Remote_User="alice")).status == 403


async def test_the_front_proxy_s_authority_with_another_name_is_nobody(signed):
    other = signed.context(signed.front_proxy.client("other", "somebody"))
    answer = await signed.guarded.get("/metrics", tls=other, X_Remote_User="alice")
    assert (answer.status, answer.message) == (401, "the common name of the front proxy's certificate is not allowed")


async def test_a_certificate_of_another_authority_does_not_even_connect(signed):
    folder = signed.folder / "other"
    folder.mkdir()
    stranger = signed.context(Authority(folder, "front-proxy-ca").client("proxy", "front-proxy-client"))
    with pytest.raises((aiohttp.ClientError, ConnectionError)):
        await signed.guarded.get("/metrics", tls=stranger, X_Remote_User="alice")
    assert signed.guarded.handled == []
