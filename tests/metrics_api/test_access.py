"""Who may read the APIs: the attacks of a client that the API server does not vouch for."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import aiohttp
import pytest

from agent.events.tls import HandshakeFailed
from agent.kube.authn.identity import Trust, UserIdentity
from agent.kube.authn.reviews import NonResource, Resource
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL
from tests.cluster.certificates import Authority
from tests.fakes.metric_values import HELD, WAITING
from tests.metrics_api.conftest import EXTERNALS, HPA, PODS, ServedApis

REFUSED_CONNECTION = (aiohttp.ClientError, ConnectionError)


async def test_the_api_server_vouches_for_the_autoscaler(apis: ServedApis) -> None:
    assert (await apis.as_hpa(PODS)).status == 200
    assert (await apis.as_hpa(EXTERNALS)).status == 200
    assert [attributes for _, attributes in apis.reviews.reviewed] == [
        Resource("get", CUSTOM, "v1beta2", "pods", "llm", "*", WAITING),
        Resource("list", EXTERNAL, "v1beta1", HELD, "llm"),
    ]
    assert {identity.user for identity, _ in apis.reviews.reviewed} == {HPA}
    assert all("system:authenticated" in identity.groups for identity, _ in apis.reviews.reviewed)


async def test_25_identity_headers_without_the_front_proxy_s_certificate_are_worth_nothing(apis: ServedApis) -> None:
    answer = await apis.get(PODS, user="system:admin", groups="system:masters")
    assert (answer.status, answer.document["reason"]) == (401, "Unauthorized")
    client = apis.context(apis.clients.client("bob", "bob"))
    answer = await apis.get(PODS, tls=client, user=HPA, groups="system:masters")
    assert answer.status == 403
    assert answer.message.startswith(f'user "bob" cannot get resource "pods/{WAITING}" in API group "{CUSTOM}"')
    assert apis.results() == ["refused", "refused"]


async def test_a_token_does_not_make_identity_headers_count(apis: ServedApis) -> None:
    apis.reviews.tokens["a-token"] = "bob"
    answer = await apis.get(PODS, user=HPA, Authorization="Bearer a-token")
    assert (answer.status, apis.reviews.reviewed[0][0].user) == (403, "bob")


async def test_a_token_of_the_autoscaler_is_enough_and_one_for_another_audience_is_not(apis: ServedApis) -> None:
    apis.reviews.tokens["a-token"] = HPA
    assert (await apis.get(PODS, Authorization="Bearer a-token")).status == 200
    answer = await apis.get(PODS, Authorization="Bearer another-token")
    assert (answer.status, answer.message) == (401, "the token is not accepted")


async def test_a_certificate_of_another_authority_does_not_connect(apis: ServedApis) -> None:
    folder = apis.folder / "other"
    folder.mkdir()
    other = apis.context(Authority(folder, "front-proxy-ca").client("proxy", "front-proxy-client"))
    with pytest.raises(REFUSED_CONNECTION):
        await apis.get(PODS, tls=other, user=HPA)
    assert apis.results() == []


async def test_the_front_proxy_s_authority_with_another_name_is_refused(apis: ServedApis) -> None:
    answer = await apis.get(PODS, tls=apis.proxy("other"), user=HPA)
    assert (answer.status, answer.message) == (401, "the common name of the front proxy's certificate is not allowed")


@pytest.mark.parametrize("shift", [timedelta(days=-3), timedelta(days=3)], ids=["expired", "not yet valid"])
async def test_a_certificate_that_is_not_valid_now_does_not_connect(apis: ServedApis, shift: timedelta) -> None:
    with pytest.raises(REFUSED_CONNECTION):
        await apis.get(PODS, tls=apis.proxy(shift=shift), user=HPA)
    assert apis.results() == []


async def test_a_user_without_the_role_reads_discovery_and_no_metric(apis: ServedApis) -> None:
    proxy = apis.proxy()
    assert (await apis.get(f"/apis/{CUSTOM}/v1beta2", tls=proxy, user="eve")).status == 200
    assert (await apis.get(PODS, tls=proxy, user="eve")).status == 403
    assert apis.reviews.reviewed[0] == (
        UserIdentity("eve", ("system:authenticated",), method="front_proxy"),
        NonResource(f"/apis/{CUSTOM}/v1beta2"),
    )


async def test_the_prober_of_the_aggregation_layer_needs_no_review(apis: ServedApis) -> None:
    apis.reviews.unavailable = True
    path = f"/apis/{CUSTOM}/v1beta2"
    answer = await apis.get(path, tls=apis.proxy(), user="system:kube-aggregator", groups="system:masters")
    assert (answer.status, apis.reviews.reviewed) == (200, [])


async def test_an_api_server_that_cannot_be_reached_refuses_and_does_not_allow(apis: ServedApis) -> None:
    apis.reviews.unavailable = True
    answer = await apis.as_hpa(PODS)
    assert (answer.status, answer.document["reason"]) == (503, "ServiceUnavailable")


@pytest.mark.parametrize(
    "path",
    [
        "/%61pis/custom.metrics.k8s.io/v1beta2/namespaces/llm/pods/*/x",
        "/healthz/../apis",
        "//healthz",
        "/apis/%2e%2e/x",
    ],
)
async def test_no_spelling_of_a_path_is_answered_without_a_review(apis: ServedApis, path: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", apis.port, ssl=apis.context())
    writer.write(f"GET {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).split(b" ")[1] == b"401"
    writer.close()


async def test_another_method_is_refused_after_the_sender_is_known(apis: ServedApis) -> None:
    assert (await apis.get(PODS, method="POST")).status == 401
    assert (await apis.as_hpa(PODS, method="POST")).status == 405


async def test_headers_over_the_limit_are_refused_before_anything_is_checked(apis: ServedApis) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", apis.port, ssl=apis.context())
    writer.write(b"GET /apis HTTP/1.1\r\nHost: agent\r\nX-Remote-User: " + b"a" * 100_000 + b"\r\n\r\n")
    assert (await reader.read(12)).split(b" ")[1] == b"400"
    writer.close()
    assert apis.results() == []
    assert (await apis.as_hpa(PODS)).status == 200


async def openssl(apis: ServedApis, *options: str) -> str:
    """What openssl prints about a connection on which it requests a renegotiation."""
    program = await asyncio.create_subprocess_exec(
        *("openssl", "s_client", "-connect", f"127.0.0.1:{apis.port}", "-cipher", "DEFAULT:@SECLEVEL=0", *options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(program.communicate(b"R\n"), 30)
    return errors.decode()


async def test_tls_1_1_is_refused(apis: ServedApis) -> None:
    assert "alert protocol version" in await openssl(apis, "-tls1_1")
    assert [event.reason for event in apis.events if isinstance(event, HandshakeFailed)] == ["version"]


async def test_renegotiation_is_refused(apis: ServedApis) -> None:
    assert "no renegotiation" in await openssl(apis, "-tls1_2")


async def test_a_thousand_idle_connections_keep_no_reader_out(apis: ServedApis) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", apis.port) for _ in range(1000)]
    try:
        assert (await apis.as_hpa(PODS)).status == 200
    finally:
        for _, writer in opened:
            writer.close()


async def test_19_a_rotated_authority_counts_from_the_next_connection_on(apis: ServedApis) -> None:
    folder = apis.folder / "next"
    folder.mkdir()
    following = Authority(folder, "front-proxy-ca")
    rotated = apis.context(following.client("proxy", "front-proxy-client"))
    async with aiohttp.ClientSession() as http:
        url = f"https://127.0.0.1:{apis.port}{PODS}"
        before = apis.proxy()
        async with http.get(url, headers={"X-Remote-User": HPA}, ssl=before) as answer:
            assert answer.status == 200
        apis.trust = apis.trust_of(following)
        apis.tls.set_client_cas(apis.trust.pem)
        async with http.get(url, headers={"X-Remote-User": HPA}, ssl=before) as answer:
            assert (answer.status, answer.headers["Connection"]) == (401, "close")
    assert (await apis.get(PODS, tls=rotated, user=HPA)).status == 200


async def test_a_connection_from_before_the_authorities_were_known_is_closed(apis: ServedApis) -> None:
    known, apis.trust = apis.trust, Trust()
    apis.tls.set_client_cas(b"")
    proxy = apis.proxy()
    async with aiohttp.ClientSession() as http:
        url = f"https://127.0.0.1:{apis.port}{PODS}"
        async with http.get(url, headers={"X-Remote-User": HPA}, ssl=proxy) as answer:
            assert answer.status == 401
        apis.trust = known
        apis.tls.set_client_cas(known.pem)
        async with http.get(url, headers={"X-Remote-User": HPA}, ssl=proxy) as answer:
            assert answer.status == 200
