"""TokenReview and SubjectAccessReview: the requests, and what their answers mean."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.authn.identity import UserIdentity
from agent.kube.authn.reviews import (
    NonResource,
    Resource,
    access_answer,
    access_review,
    reviewed_identity,
    token_review,
)
from agent.kube.cache import UnreadableAnswer

USER = {"username": "alice", "uid": "7", "groups": ["dev"], "extra": {"b": ["2"], "a": ["1", "3"]}}
ALICE = UserIdentity("alice", ("dev",), "7", (("a", ("1", "3")), ("b", ("2",))))


def answer(**status: object) -> bytes:
    return json.dumps({"kind": "Review", "status": status}).encode()


def test_a_review_of_a_token_names_the_audiences():
    assert json.loads(token_review("t", ())) == {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": "t"},
    }
    assert json.loads(token_review("t", ["igw"]))["spec"] == {"token": "t", "audiences": ["igw"]}


def test_an_authenticated_token_is_its_user():
    assert reviewed_identity(answer(authenticated=True, user=USER), ()) == ALICE
    assert reviewed_identity(answer(authenticated=True, user=USER, audiences=["x", "igw"]), ["igw"]) == ALICE


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({}, "the API server does not know the token"),
        ({"authenticated": False, "error": "token has expired"}, "token has expired"),
        ({"authenticated": True}, "the API server names no user"),
        ({"authenticated": True, "user": USER, "audiences": ["other"]}, "the token is not for the audience igw or a"),
        ({"authenticated": True, "user": USER}, "the token is not for the audience igw or a"),
        ({"authenticated": False, "user": USER, "audiences": ["igw"]}, "the API server does not know the token"),
    ],
)
def test_any_other_answer_is_a_reason(status, reason):
    found = reviewed_identity(answer(**status), ["igw", "a"] if status.get("user") else [])
    assert found == reason


def test_a_review_of_access_has_the_whole_identity():
    review = json.loads(access_review(ALICE, NonResource("/metrics")))
    assert (review["apiVersion"], review["kind"]) == ("authorization.k8s.io/v1", "SubjectAccessReview")
    assert review["spec"] == {
        "user": "alice",
        "uid": "7",
        "groups": ["dev"],
        "extra": {"a": ["1", "3"], "b": ["2"]},
        "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
    }


def test_a_review_of_access_to_a_resource_has_its_attributes():
    attributes = Resource("get", "custom.metrics.k8s.io", "v1beta2", "pods", "default", "*", "queue")
    review = json.loads(access_review(UserIdentity("bob"), attributes))
    assert review["spec"] == {
        "user": "bob",
        "groups": [],
        "resourceAttributes": {
            "verb": "get",
            "group": "custom.metrics.k8s.io",
            "version": "v1beta2",
            "resource": "pods",
            "namespace": "default",
            "name": "*",
            "subresource": "queue",
        },
    }
    assert str(attributes) == (
        'get resource "pods/queue" in API group "custom.metrics.k8s.io" in the namespace "default"'
    )


def test_access_is_what_the_answer_says():
    assert access_answer(answer(allowed=True)) == (True, "")
    assert access_answer(answer(allowed=False, reason="no role")) == (False, "no role")
    assert access_answer(answer(allowed=False, evaluationError="broken")) == (False, "broken")
    assert access_answer(answer(allowed=True, denied=True)) == (False, "")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"status": {"allowed": "yes"}}', b'{"status": null}', b"\xff"])
def test_an_answer_that_is_none_is_not_an_answer(data):
    with pytest.raises(UnreadableAnswer):
        access_answer(data)
    if b"allowed" not in data:
        with pytest.raises(UnreadableAnswer):
            reviewed_identity(data, ())


@given(st.binary(max_size=80))
def test_any_bytes_are_no_access(data):
    for decode in (access_answer, lambda data: reviewed_identity(data, ())):
        with pytest.raises(UnreadableAnswer):
            decode(data)
