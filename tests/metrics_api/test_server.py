"""The APIs over HTTPS: documents, values, Status objects, gzip, HEAD, and what a client accepts."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from agent.events.metrics_api import MetricsRead
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.serve.metrics_api.paths import CUSTOM, EXTERNAL, documents
from agent.serve.metrics_api.selectors import MAX_SELECTOR_BYTES
from agent.serve.metrics_api.status import STATUS_REASONS
from tests.fakes.metric_values import HELD, WAITING, pool_of
from tests.metrics_api.conftest import EXTERNALS, PODS, POOL, ServedApis


async def test_a_list_of_pods_has_a_value_for_each(open_apis: ServedApis) -> None:
    answer = await open_apis.get(PODS)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "no-store"
    document = answer.document
    assert (document["kind"], document["apiVersion"]) == ("MetricValueList", f"{CUSTOM}/v1beta2")
    assert [item["describedObject"]["name"] for item in document["items"]] == ["a", "b", "c"]
    assert {item["value"] for item in document["items"]} == {"1500m"}


async def test_an_object_and_an_external_metric_have_one_item(open_apis: ServedApis) -> None:
    (item,) = (await open_apis.get(POOL)).document["items"]
    assert (item["describedObject"]["kind"], item["value"]) == ("InferencePool", "2")
    (item,) = (await open_apis.get(EXTERNALS)).document["items"]
    assert (item["metricLabels"], item["value"]) == ({"pool": "chat", "inference_pool": "chat"}, "3")


@pytest.mark.parametrize("path", sorted(documents(frozenset({CUSTOM, EXTERNAL}))))
async def test_18_documents_are_answered_from_memory(open_apis: ServedApis, path: str) -> None:
    answer = await open_apis.get(path)
    assert (answer.status, open_apis.metrics.reads) == (200, 0)
    assert answer.document


async def test_discovery_names_the_preferred_version_first(open_apis: ServedApis) -> None:
    groups = (await open_apis.get("/apis")).document["groups"]
    assert [group["name"] for group in groups] == [CUSTOM, EXTERNAL]
    assert [group["preferredVersion"]["version"] for group in groups] == ["v1beta2", "v1beta1"]


async def test_the_openapi_documents_that_are_listed_exist(open_apis: ServedApis) -> None:
    index = (await open_apis.get("/openapi/v3")).document["paths"]
    assert len(index) == 3
    for entry in index.values():
        found = (await open_apis.get(entry["serverRelativeURL"])).document
        assert found["openapi"] == "3.0.0"
    assert (await open_apis.get("/openapi/v2")).document["swagger"] == "2.0"


async def test_22_a_thousand_pods_are_one_answer_and_gzip_makes_it_small(open_apis: ServedApis) -> None:
    names = [f"pod-{number:04}" for number in range(1000)]
    open_apis.pools = [pool_of("chat", *names)]
    now = open_apis.clock.now()
    open_apis.metrics.pods["chat", WAITING] = {f"{name}:8000": ServedValue(1.0, now) for name in names}
    plain = await open_apis.get(PODS)
    packed = await open_apis.get(PODS, Accept_Encoding="gzip")
    assert len(plain.document["items"]) == len(packed.document["items"]) == 1000
    assert packed.headers["Content-Encoding"] == "gzip"
    assert int(packed.headers["Content-Length"]) * 10 < int(plain.headers["Content-Length"])


async def test_23_a_percent_encoded_name_is_the_name(open_apis: ServedApis) -> None:
    encoded = PODS.replace("*", "%2A").replace(WAITING, quote(WAITING).replace("_", "%5F"))
    assert len((await open_apis.get(encoded)).document["items"]) == 3


async def test_24_head_has_the_headers_of_get_and_no_body(open_apis: ServedApis) -> None:
    get, head = await open_apis.get(PODS), await open_apis.get(PODS, method="HEAD")
    assert (head.status, head.document) == (200, b"")
    assert head.headers["Content-Length"] == get.headers["Content-Length"]


async def test_24_a_client_that_prefers_protobuf_gets_json_and_one_that_accepts_nothing_else_a_status(
    open_apis: ServedApis,
) -> None:
    protobuf = "application/vnd.kubernetes.protobuf"
    answer = await open_apis.get(PODS, Accept=f"{protobuf},application/json")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    refused = await open_apis.get(PODS, Accept=protobuf)
    assert (refused.status, refused.document["reason"]) == (406, "NotAcceptable")
    assert refused.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    ("path", "method", "status", "result"),
    [
        ("/nothing", "GET", 404, "bad_path"),
        (f"/apis/{CUSTOM}/v1beta2/namespaces", "GET", 400, "bad_path"),
        (PODS, "POST", 405, "bad_path"),
        (PODS, "DELETE", 405, "bad_path"),
        (PODS.replace(WAITING, "nothing"), "GET", 404, "unknown_metric"),
        (PODS.replace("/llm/", "/other/"), "GET", 404, "unknown_namespace"),
        (PODS.replace("*", "z"), "GET", 404, "unknown_object"),
        (f"{PODS}?labelSelector=a%20b", "GET", 400, "bad_selector"),
        (f"{PODS}?labelSelector=app%3Dz", "GET", 404, "no_match"),
        (f"{PODS}?watch=1", "GET", 405, "bad_path"),
    ],
)
async def test_a_refusal_is_a_status_object_and_counted(
    open_apis: ServedApis, path: str, method: str, status: int, result: str
) -> None:
    answer = await open_apis.get(path, method=method)
    assert answer.status == status
    document = answer.document
    assert (document["kind"], document["apiVersion"], document["status"]) == ("Status", "v1", "Failure")
    assert (document["code"], document["reason"]) == (status, STATUS_REASONS[status])
    assert document["message"]
    assert open_apis.results() == [result]


async def test_a_selector_of_ten_kilobytes_is_refused_with_a_status(open_apis: ServedApis) -> None:
    selector = quote("app=chat" + " " * MAX_SELECTOR_BYTES)
    answer = await open_apis.get(f"{PODS}?labelSelector={selector}")
    assert (answer.status, open_apis.results()) == (400, ["bad_selector"])
    assert "over 10000 bytes" in answer.message
    assert (await open_apis.get(PODS)).status == 200


async def test_a_withheld_value_is_a_503_that_says_why(open_apis: ServedApis) -> None:
    open_apis.metrics.externals["chat", HELD] = WithheldMetric("replica_unknown", "replica b is silent")
    answer = await open_apis.get(EXTERNALS)
    assert (answer.status, answer.document["reason"]) == (503, "ServiceUnavailable")
    assert answer.message == f"{HELD} of pool chat is unknown now: replica b is silent"
    assert "Retry-After" not in answer.headers


async def test_the_age_of_the_oldest_value_is_reported(open_apis: ServedApis) -> None:
    open_apis.metrics.pods["chat", WAITING]["b:8000"] = ServedValue(1.0, open_apis.clock.now() - 100.0)
    await open_apis.get(PODS)
    (event,) = (event for event in open_apis.events if isinstance(event, MetricsRead))
    assert (event.result, event.api) == ("ok", "custom")
    assert event.age_seconds is not None
    assert event.age_seconds >= 100.0


async def test_an_autoscaler_that_reads_often_gets_every_answer_and_each_is_counted(apis: ServedApis) -> None:
    answers = [await apis.as_hpa(PODS) for _ in range(20)]
    assert {answer.status for answer in answers} == {200}
    assert apis.results() == ["ok"] * 20


async def test_health_pages_are_public(apis: ServedApis) -> None:
    for path in ("/healthz", "/livez", "/readyz"):
        assert (await apis.get(path)).document == b"ok"
