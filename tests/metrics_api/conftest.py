"""A server of the metrics APIs over TLS, authorities of a front proxy and of clients, and a scripted API server."""

from __future__ import annotations

import asyncio
import gzip
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from agent.clock import SystemClock
from agent.config.tls import TlsConfig
from agent.events import Event
from agent.events.metrics_api import MetricsRead
from agent.kube.authn.access import Access
from agent.kube.authn.certificates import CaBundle
from agent.kube.authn.identity import CannotCheck, FrontProxyTrust, Trust, UserIdentity
from agent.kube.authn.reviews import AccessAnswer, Attributes
from agent.kube.authn.standing_groups import StandingGroups
from agent.scaling.served_metrics import ServedValue
from agent.serve.metrics_api.access import ApiAccess
from agent.serve.metrics_api.answer import ReadLimits
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL
from agent.serve.metrics_api.server import MetricsApiServer, MetricsView
from agent.serve.tls.server import METRICS_API, ServerTls
from tests.cluster.certificates import Authority, KeyPair
from tests.fakes.metric_values import AVERAGE_QUEUE, HELD, WAITING, FixedMetrics, pool_of

HPA = "system:serviceaccount:kube-system:horizontal-pod-autoscaler"
PODS = f"/apis/{CUSTOM}/v1beta2/namespaces/llm/pods/*/{WAITING}"
POOL = f"/apis/{CUSTOM}/v1beta2/namespaces/llm/inferencepools.inference.networking.k8s.io/chat/{AVERAGE_QUEUE}"
EXTERNALS = f"/apis/{EXTERNAL}/v1beta1/namespaces/llm/{HELD}"


class ScriptedReviews:
    """The API server: the HPA may read all metrics, every authenticated user may read discovery."""

    def __init__(self) -> None:
        self.reviewed: list[tuple[UserIdentity, Attributes]] = []
        self.tokens: dict[str, str] = {}
        self.unavailable = False

    async def identity_of(self, token: str) -> UserIdentity | str:
        if self.unavailable:
            raise CannotCheck("the API server is away")
        user = self.tokens.get(token)
        return "the token is not for the audience of the API server" if user is None else UserIdentity(user)

    async def may(self, identity: UserIdentity, attributes: Attributes) -> AccessAnswer:
        if self.unavailable:
            raise CannotCheck("the API server is away")
        self.reviewed.append((identity, attributes))
        discovery = "path" in str(attributes) and "system:authenticated" in identity.groups
        return AccessAnswer(discovery or identity.user == HPA, "")


class Answer(NamedTuple):
    """What a client gets."""

    status: int
    document: Any
    headers: Mapping[str, str]

    @property
    def message(self) -> str:
        return str(self.document["message"])


class ServedApis:
    """A running server, and clients of it."""

    def __init__(self, folder: Path, *, checked: bool = True) -> None:
        self.folder = folder
        self.front_proxy, self.clients = Authority(folder, "front-proxy-ca"), Authority(folder, "ca")
        self.pair = self.clients.server("server", ["127.0.0.1"])
        self.reviews = ScriptedReviews()
        self.events: list[Event] = []
        self.clock = SystemClock()
        self.metrics = FixedMetrics()
        now = self.clock.now()
        self.metrics.pods["chat", WAITING] = {f"{name}:8000": ServedValue(1.5, now) for name in "abc"}
        self.metrics.pools["chat", AVERAGE_QUEUE] = ServedValue(2.0, now)
        self.metrics.externals["chat", HELD] = ServedValue(3.0, now)
        self.pools = [pool_of("chat", "a", "b", "c")]
        self.trust = self.trust_of(self.front_proxy)
        config = TlsConfig(cert_file=str(self.pair.certificate), key_file=str(self.pair.key))
        self.tls = ServerTls(config, METRICS_API, hook=self.events.append, clock=self.clock)
        self.tls.load()
        self.tls.set_client_cas(self.trust.pem)
        groups = (CUSTOM, EXTERNAL)
        permissions = StandingGroups(self.reviews)
        access = Access(self.reviews, permissions, self.clock, self.events.append, lambda: self.trust)
        self.server = MetricsApiServer(
            "127.0.0.1:0",
            groups=groups,
            view=lambda _: MetricsView(self.pools, self.metrics),
            limits=ReadLimits(600.0, 0.8),
            clock=self.clock,
            hook=self.events.append,
            software="1.2.3",
            authorize=ApiAccess(access, frozenset(groups)) if checked else None,
            tls=self.tls,
        )
        self.port = 0

    def trust_of(self, front_proxy: Authority) -> Trust:
        proxy = CaBundle(front_proxy.certificate.read_bytes())
        names = frozenset({"front-proxy-client"})
        return Trust(
            FrontProxyTrust(proxy, names, ("X-Remote-User",), ("X-Remote-Group",)),
            CaBundle(self.clients.certificate.read_bytes()),
        )

    def context(self, pair: KeyPair | None = None) -> ssl.SSLContext:
        """The TLS of a client with this certificate."""
        context = ssl.create_default_context(cafile=str(self.clients.certificate))
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context

    def proxy(self, name: str = "front-proxy-client", *, shift: timedelta = timedelta()) -> ssl.SSLContext:
        """The TLS of the aggregation layer, or of one with another name or validity."""
        return self.context(self.front_proxy.client(f"proxy-{shift}", name, shift=shift))

    async def get(
        self,
        path: str,
        *,
        tls: ssl.SSLContext | None = None,
        user: str = "",
        groups: str = "",
        method: str = "GET",
        **headers: str,
    ) -> Answer:
        """The answer to a request over a connection of its own; `user` is in the header of the front proxy."""
        names = {"Accept-Encoding": "identity"} | {name.replace("_", "-"): text for name, text in headers.items()}
        names |= {"X-Remote-User": user} if user else {}
        names |= {"X-Remote-Group": groups} if groups else {}
        async with (
            aiohttp.ClientSession(auto_decompress=False) as http,
            http.request(
                method, f"https://127.0.0.1:{self.port}{path}", headers=names, ssl=tls or self.context()
            ) as response,
        ):
            body = await response.read()
            if response.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            is_json = response.content_type == "application/json" and body
            return Answer(response.status, json.loads(body) if is_json else body, response.headers.copy())

    async def as_hpa(self, path: str, *, method: str = "GET", **headers: str) -> Answer:
        """The answer to the HPA through the front proxy."""
        return await self.get(path, tls=self.proxy(), user=HPA, method=method, **headers)

    def results(self) -> list[str]:
        return [event.result for event in self.events if isinstance(event, MetricsRead)]


@pytest.fixture
async def apis(tmp_path: Path) -> AsyncIterator[ServedApis]:
    served = ServedApis(tmp_path)
    served.port = await served.server.http.start()
    yield served
    await served.server.http.stop()


@pytest.fixture
async def open_apis(tmp_path: Path) -> AsyncIterator[ServedApis]:
    """The same without a check of the sender."""
    served = ServedApis(tmp_path, checked=False)
    served.port = await served.server.http.start()
    yield served
    await asyncio.wait_for(served.server.http.stop(), 10)
