"""Who may read the admin port, decided by a real API server; and the trust that it publishes for aggregated APIs."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agent.app.agent import Agent
from agent.app.vocabulary import VOCABULARY
from agent.clock import SystemClock
from agent.config.file import load
from agent.events import ignore
from agent.events.access import AccessChecked
from agent.kube.authn.access import Access
from agent.kube.authn.identity import RequestFacts, Trust, UserIdentity
from agent.kube.authn.review_client import ReviewClient
from agent.kube.authn.reviews import NonResource
from agent.kube.authn.trust_source import TrustSource
from agent.kube.cluster import Cluster
from tests.app.live import Recorder
from tests.cluster.access import ServiceAccount, create_service_account, grant, kubeconfig_of, request_token
from tests.cluster.api import Api
from tests.cluster.certificates import Authority, KeyPair
from tests.cluster.control_plane import ControlPlane
from tests.docs.test_pages import yaml_blocks
from tests.journeys.prometheus import Prometheus
from tests.processes import Processes
from tests.waiting import eventually, found, until

REVIEWS: Final = [
    {"apiGroups": ["authentication.k8s.io"], "resources": ["tokenreviews"], "verbs": ["create"]},
    {"apiGroups": ["authorization.k8s.io"], "resources": ["subjectaccessreviews"], "verbs": ["create"]},
]
READ_METRICS: Final = [{"nonResourceURLs": ["/metrics", "/v1/*"], "verbs": ["get"]}]
TRUST_NAME: Final = "extension-apiserver-authentication"
TRUST_PATH: Final = f"/api/v1/namespaces/kube-system/configmaps/{TRUST_NAME}"
READ_TRUST: Final = [
    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [TRUST_NAME], "verbs": ["list", "watch"]}
]


class Accounts(NamedTuple):
    """The agent's account, one that may read the metrics, and one without a role."""

    agent: ServiceAccount
    reader: ServiceAccount
    stranger: ServiceAccount


@pytest.fixture
def accounts(control_plane: ControlPlane, namespace: str) -> Accounts:
    api = control_plane.api
    made = Accounts(*(create_service_account(api, namespace, name) for name in Accounts._fields))
    grant(api, made.agent, REVIEWS)
    grant(api, made.reader, READ_METRICS)
    until(lambda: _may_read(api, made.reader), what="the role of the reader")
    return made


def _may_read(api: Api, account: ServiceAccount) -> bool:
    spec = {"user": account.user, "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    allowed: bool = api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)["status"]["allowed"]
    return allowed


class AdminReader:
    """A running agent with TLS and `mode: kubernetes`, and a client of its admin port."""

    def __init__(self, address: str, recorder: Recorder, authority: Authority) -> None:
        self.address = address
        self.recorder = recorder
        self.authority = authority
        self.tls = ssl.create_default_context(cafile=str(authority.certificate))

    async def get(self, path: str, token: str = "") -> tuple[int, str]:
        """The status and the text of the answer, or the message of the error."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        url = f"https://{self.address}{path}"
        async with aiohttp.ClientSession() as http, http.get(url, headers=headers, ssl=self.tls) as response:
            text = await response.text()
            return response.status, text if response.status == 200 else json.loads(text)["error"]["message"]

    async def status(self, path: str, token: str = "") -> int:
        return (await self.get(path, token))[0]


@asynccontextmanager
async def admin(folder: Path, kubeconfig: Path, auth: str = "mode: kubernetes") -> AsyncIterator[AdminReader]:
    """An agent that reviews with the credentials of a kubeconfig."""
    authority = Authority(folder, "admin-ca")
    own = authority.server("admin", ["127.0.0.1"])
    file = folder / "igw.yaml"
    file.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "pools:\n- {extProcAddress: '127.0.0.1:0', endpoints: []}\n"
        f"kubernetes: {{kubeconfig: {kubeconfig}}}\n"
        f"admin:\n  address: 127.0.0.1:0\n  tls: {{certFile: {own.certificate}, keyFile: {own.key}}}\n"
        f"  auth: {{{auth}}}\n",
        encoding="utf-8",
    )
    clock = SystemClock()
    recorder = Recorder(clock)
    agent = Agent(load(file, VOCABULARY), clock, instruments=recorder)
    ports = await agent.start()
    try:
        yield AdminReader(ports.admin, recorder, authority)
    finally:
        await agent.stop(grace=0)


async def test_an_account_with_the_role_reads_the_metrics_and_nobody_else_does(
    control_plane: ControlPlane, accounts: Accounts, tmp_path: Path
) -> None:
    api = control_plane.api
    reader, stranger = (request_token(api, account) for account in (accounts.reader, accounts.stranger))
    async with admin(tmp_path, kubeconfig_of(control_plane, accounts.agent)) as port:
        status, page = await port.get("/metrics", reader)
        assert status == 200
        assert "igw_access_checks_total" in (await port.get("/metrics", reader))[1]
        assert page.startswith("# HELP")
        assert await port.status("/v1/state", reader) == 200
        assert await port.get("/runbooks/", reader) == (
            403,
            f'user "{accounts.reader.user}" cannot get path "/runbooks/"; grant it with RBAC',
        )
        assert await port.get("/metrics", stranger) == (
            403,
            f'user "{accounts.stranger.user}" cannot get path "/metrics"; grant it with RBAC',
        )
        elsewhere = request_token(api, accounts.reader, audiences=["elsewhere"])
        for token in ("", "not-a-token", expired(control_plane, reader), elsewhere):
            assert await port.status("/metrics", token) == 401
            assert await port.status("/nothing", token) == 401
        assert await port.status("/healthz") == 200
        assert await port.status("/readyz") in {200, 503}
        checks = port.recorder.of(AccessChecked)
        secrets = [reader, stranger, "not-a-token"]
        assert not any(secret in check.detail for secret in secrets for check in checks)


def expired(control_plane: ControlPlane, token: str) -> str:
    """The same token, signed by the same key, whose time is over; the API server makes none that ends so early."""
    head, claims, _ = token.split(".")
    content = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    for name in ("iat", "nbf", "exp"):
        content[name] -= 7200
    signed = f"{head}.{_encoded(json.dumps(content).encode())}"
    key = serialization.load_pem_private_key(control_plane.tokens.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{signed}.{_encoded(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


async def test_tokens_are_for_the_configured_audience(
    control_plane: ControlPlane, accounts: Accounts, tmp_path: Path
) -> None:
    kubeconfig = kubeconfig_of(control_plane, accounts.agent)
    async with admin(tmp_path, kubeconfig, "mode: kubernetes, audiences: [igw]") as port:
        own = request_token(control_plane.api, accounts.reader, audiences=["igw"])
        assert await port.status("/metrics", own) == 200
        for audiences in ([], ["other"]):
            token = request_token(control_plane.api, accounts.reader, audiences=audiences)
            assert await port.status("/metrics", token) == 401


async def test_an_agent_that_may_not_review_answers_nobody_and_names_the_role_that_it_lacks(
    control_plane: ControlPlane, accounts: Accounts, tmp_path: Path
) -> None:
    async with admin(tmp_path, kubeconfig_of(control_plane, accounts.stranger)) as port:
        assert await port.status("/metrics", request_token(control_plane.api, accounts.reader)) == 503
        (check,) = port.recorder.of(AccessChecked)
        assert "may not create tokenreviews; bind its ServiceAccount to the ClusterRole system:auth-delegator" in (
            check.detail
        )


async def test_while_the_api_server_is_gone_the_answer_is_503_and_health_is_answered(
    control_plane: ControlPlane, accounts: Accounts, tmp_path: Path
) -> None:
    reader = request_token(control_plane.api, accounts.reader)
    async with admin(tmp_path, kubeconfig_of(control_plane, accounts.agent)) as port:
        control_plane.stop_api_server(abruptly=True)
        try:
            status, message = await port.get("/metrics", reader)
            assert (status, message) == (503, "the credentials cannot be checked now; the agent's log has the reason")
            assert "the API server cannot be reached" in port.recorder.of(AccessChecked)[-1].detail
            assert await port.status("/metrics") == 401
            assert await port.status("/healthz") == 200
        finally:
            control_plane.start_api_server()  # from this thread: the kernel kills it when its thread ends
        assert await found(lambda: port.status("/metrics", reader), lambda status: status == 200, what="an answer")


async def test_prometheus_scrapes_with_the_token_of_its_account(
    control_plane: ControlPlane, accounts: Accounts, tmp_path: Path, processes: Processes, free_port: int
) -> None:
    file = tmp_path / "token"
    file.touch(mode=0o600)
    file.write_text(request_token(control_plane.api, accounts.reader), encoding="utf-8")
    async with admin(tmp_path, kubeconfig_of(control_plane, accounts.agent)) as port:
        job = {
            "job_name": "igw",
            "scheme": "https",
            "tls_config": {"ca_file": str(port.authority.certificate)},
            "authorization": {"credentials_file": str(file)},
            "static_configs": [{"targets": [port.address]}],
        }
        prometheus = await asyncio.to_thread(Prometheus, processes, tmp_path / "p", free_port, {}, (), [job])

        async def health() -> str:
            targets = await asyncio.to_thread(prometheus.targets)
            return " ".join(f"{target['health']} {target['lastError']}" for target in targets)

        assert await found(health, lambda text: text.startswith("up"), what="a scrape") == "up "


# -- the trust of aggregated APIs --------------------------------------------------------------------------------------


def der(pair: KeyPair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


HEADERS: Final = [("X-Remote-User", "alice"), ("X-Remote-Group", "dev"), ("X-Remote-Extra-scopes", "read")]


async def test_the_front_proxy_of_the_api_server_is_trusted_and_a_rotated_one_at_once(
    control_plane: ControlPlane, namespace: str, accounts: Accounts, tmp_path: Path
) -> None:
    api = control_plane.api
    grant(api, accounts.agent, READ_TRUST, "kube-system")
    clock = SystemClock()
    cluster = Cluster(str(kubeconfig_of(control_plane, accounts.agent)), clock)
    changes: list[Trust] = []
    source = TrustSource(cluster, lambda: changes.append(source.trust))
    reading = asyncio.create_task(source.run())
    reviews = ReviewClient(cluster, (), clock)
    access = Access(reviews, reviews, clock, ignore, lambda: source.trust)

    async def who(certificate: bytes | None, headers: list[tuple[str, str]] = HEADERS) -> UserIdentity | None:
        return (await access.decide(RequestFacts(certificate, headers), NonResource("/metrics"))).identity

    await eventually(lambda: source.trust != Trust(), what="the trust")
    assert source.problems == ()
    proxy = der(control_plane.front_proxy)
    assert await who(proxy) == UserIdentity("alice", ("dev",), "", (("scopes", ("read",)),), "front_proxy")
    administrator = der(control_plane.admin)
    assert await who(administrator) == UserIdentity("admin", ("system:masters",), method="client_certificate")
    assert (await access.decide(RequestFacts(administrator, []), NonResource("/metrics"))).result == "allowed"

    next_authority = Authority(tmp_path, "next-front-proxy-ca")
    rotated = der(next_authority.client("next", "front-proxy-client"))
    assert await who(rotated) is None
    assert await who(None) is None
    before = (await asyncio.to_thread(api.get, TRUST_PATH))["data"]["requestheader-client-ca-file"]
    bundle = before + next_authority.certificate.read_text()
    try:
        await asyncio.to_thread(api.patch, TRUST_PATH, {"data": {"requestheader-client-ca-file": bundle}})
        await eventually(lambda: len(changes) >= 2, what="the rotated authority")
        assert (await who(rotated)) == (await who(proxy))
        assert await who(der(next_authority.client("other", "somebody"))) is None
    finally:
        await asyncio.to_thread(api.patch, TRUST_PATH, {"data": {"requestheader-client-ca-file": before}})
    await eventually(lambda: source.trust == changes[0], what="the end of the rotated authority")
    assert await who(rotated) is None
    assert await who(proxy) is not None
    reading.cancel()
    await asyncio.wait([reading])
    cluster.close()


async def test_a_trust_that_may_not_be_read_is_nobody_s_and_says_why(
    control_plane: ControlPlane, accounts: Accounts
) -> None:
    cluster = Cluster(str(kubeconfig_of(control_plane, accounts.stranger)), SystemClock())
    source = TrustSource(cluster)
    reading = asyncio.create_task(source.run())
    problem: Any = await eventually(lambda: [each for each in source.problems if "403" in each], what="the problem")
    assert problem[0].startswith(f"ConfigMap kube-system/{TRUST_NAME} cannot be read: 403: configmaps ")
    assert source.trust == Trust()
    reading.cancel()
    await asyncio.wait([reading])
    cluster.close()


def test_the_role_of_a_reader_in_the_documentation_is_valid(control_plane: ControlPlane) -> None:
    (block,) = (each for each in yaml_blocks() if "reader-role" in each.kinds)
    role, binding = block.documents
    control_plane.api.create(role, dry_run=True)
    control_plane.api.create(binding, dry_run=True)
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"get"}
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
