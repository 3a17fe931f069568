"""From a request target to the question, and to the right that it needs."""

from __future__ import annotations

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.authn.reviews import NonResource, Resource
from agent.serve.metrics_api.paths import (
    CUSTOM,
    EXTERNAL,
    DocumentRequest,
    ExternalRequest,
    ObjectRequest,
    documents,
    parse_target,
)
from agent.serve.metrics_api.selectors import EVERYTHING
from agent.serve.metrics_api.status import RESULTS, RequestRefused

BOTH = frozenset({CUSTOM, EXTERNAL})
C = f"/apis/{CUSTOM}/v1beta2"
E = f"/apis/{EXTERNAL}/v1beta1"
NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)


def refusal(target: str, groups: frozenset[str] = BOTH) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        parse_target(target, groups)
    assert refused.value.cause in RESULTS
    return refused.value


def test_one_object_of_a_namespace():
    found = parse_target(f"{C}/namespaces/llm/pods/vllm-0/waiting", BOTH)
    assert found == ObjectRequest("v1beta2", "llm", "pods", "vllm-0", "waiting", EVERYTHING, EVERYTHING)
    assert found.attributes == Resource("get", CUSTOM, "v1beta2", "pods", "llm", "vllm-0", "waiting")


def test_all_objects_that_a_selector_matches():
    found = parse_target(
        f"{C}/namespaces/llm/pods/*/waiting?labelSelector=app%3Dchat&metricLabelSelector=pool%3Da", BOTH
    )
    assert isinstance(found, ObjectRequest)
    assert (found.name, found.labels.text, found.metric_labels.text) == ("*", "app=chat", "pool=a")
    assert found.attributes == Resource("get", CUSTOM, "v1beta2", "pods", "llm", "*", "waiting")


def test_a_star_may_be_percent_encoded():
    assert parse_target(f"{C}/namespaces/llm/pods/%2A/m", BOTH) == parse_target(f"{C}/namespaces/llm/pods/*/m", BOTH)


def test_an_object_without_a_namespace():
    found = parse_target(f"{C}/nodes/n1/m", BOTH)
    assert isinstance(found, ObjectRequest)
    assert (found.namespace, found.resource, found.name, found.metric) == ("", "nodes", "n1", "m")


def test_the_metric_of_a_namespace_is_of_the_namespace_as_an_object():
    found = parse_target(f"{C}/namespaces/llm/metrics/m?metricLabelSelector=a", BOTH)
    assert isinstance(found, ObjectRequest)
    assert (found.namespace, found.resource, found.name, found.metric) == ("", "namespaces", "llm", "m")
    assert found.metric_labels.text == "a"
    assert found.attributes == Resource("get", CUSTOM, "v1beta2", "metrics", "llm", "m")


def test_the_label_selector_of_an_external_metric_selects_labels_of_the_metric_and_its_verb_is_list():
    found = parse_target(f"{E}/namespaces/llm/held?labelSelector=pool%3Da", BOTH)
    assert isinstance(found, ExternalRequest)
    assert (found.namespace, found.metric, found.metric_labels.text) == ("llm", "held", "pool=a")
    assert found.attributes == Resource("list", EXTERNAL, "v1beta1", "held", "llm")


@given(st.lists(NAMES, min_size=4, max_size=4))
def test_names_are_decoded_after_the_path_was_split(names):
    namespace, resource, name, metric = names
    if resource == "metrics" or any(each in {".", ".."} for each in names):
        return
    target = "/".join([C, "namespaces", *(quote(each, safe="") for each in names)])
    found = parse_target(target, BOTH)
    assert isinstance(found, ObjectRequest)
    assert (found.namespace, found.resource, found.name, found.metric) == (namespace, resource, name, metric)


@given(st.text(max_size=80))
def test_any_target_is_a_question_or_has_a_status(text):
    found: object
    try:
        found = parse_target(text, BOTH)
    except RequestRefused as refused:
        found = refused
    assert isinstance(found, DocumentRequest | ObjectRequest | ExternalRequest) or str(found)
    assert getattr(found, "code", 404) in {400, 404, 405}


@pytest.mark.parametrize("path", sorted(documents(BOTH)))
@pytest.mark.parametrize("suffix", ["", "/", "?timeout=32s"])
def test_a_document_has_a_path_of_its_own_right(path, suffix):
    assert parse_target(path + suffix, BOTH) == DocumentRequest(path)
    assert DocumentRequest(path).attributes == NonResource(path)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ("/", 404),
        ("/api", 404),
        ("/apis/apps/v1", 404),
        (f"/apis/{CUSTOM}/v1", 404),
        (f"/apis/{CUSTOM}/v1/namespaces/a/pods/*/m", 404),
        (f"/apis/{EXTERNAL}/v1beta2", 404),
        (f"{C}/namespaces", 400),
        (f"{C}/namespaces/llm", 400),
        (f"{C}/namespaces/llm/pods/*/m/more", 404),
        (f"{C}//pods/*/m", 404),
        (f"{E}/namespaces/llm", 400),
        (f"{E}/namespaces/llm/a/b", 404),
        (f"{E}/nodes/n1/m", 404),
        (f"{C}/namespaces/llm/pods/%FF/m", 400),
        (f"{C}/namespaces/llm/pods/a%0Ab/m", 400),
        (f"{C}/namespaces/llm/pods/{'a' * 254}/m", 404),
    ],
)
def test_another_shape_has_a_status_with_the_shapes(target, code):
    refused = refusal(target)
    assert (refused.code, refused.cause) == (code, "bad_path")


def test_an_encoded_slash_in_an_external_metric_is_part_of_its_name():
    found = parse_target(f"{E}/namespaces/llm/a%2Fb", BOTH)
    assert isinstance(found, ExternalRequest)
    assert found.metric == "a/b"


def test_a_group_that_is_switched_off_is_not_served():
    assert refusal(f"{C}/namespaces/llm/pods/*/m", frozenset({EXTERNAL})).code == 404
    assert refusal(f"/apis/{CUSTOM}", frozenset({EXTERNAL})).code == 404


@pytest.mark.parametrize(
    ("query", "code", "message"),
    [
        ("labelSelector=a%20b", 400, "unable to parse labelSelector: there is 'b' after the key 'a'"),
        ("metricLabelSelector=,", 400, "unable to parse metricLabelSelector"),
        ("labelSelector=a&labelSelector=b", 400, "the parameter labelSelector is repeated"),
        ("labelSelector=%FF", 400, "not UTF-8"),
        ("watch=true", 405, "metrics cannot be watched"),
        (f"labelSelector={'a%2C' * 5001}", 400, "over 10000 bytes"),
    ],
)
def test_a_query_that_cannot_be_read_has_a_status(query, code, message):
    refused = refusal(f"{C}/namespaces/llm/pods/*/m?{query}")
    assert refused.code == code
    assert message in str(refused)
