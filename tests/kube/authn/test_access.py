"""Decisions about requests: reviews by the API server, what is kept of them, and what happens without it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agent.events import ignore
from agent.events.access import AccessChecked
from agent.kube.authn import review_client
from agent.kube.authn.access import Access, Decision
from agent.kube.authn.identity import CLIENT_CERTIFICATE, CannotCheck, RequestFacts, Trust, UserIdentity
from agent.kube.authn.review_client import KEEP_SECONDS, MAX_REVIEWS, MAX_WAITING, ReviewClient
from agent.kube.authn.reviews import ACCESS_REVIEWS, TOKEN_REVIEWS, NonResource
from agent.kube.errors import ApiFailed, NoCluster, Unreachable
from tests.fakes.clock import WALL_AT_ZERO, ManualClock
from tests.kube.authn.issuer import HOUR, Issuer
from tests.kube.authn.scripted_cluster import ScriptedCluster
from tests.waiting import eventually

METRICS = NonResource("/metrics")


class Reviews:
    """An `Access` over a scripted cluster, where the token `good` is alice, who may read /metrics."""

    def __init__(self, **options: Any) -> None:
        self.cluster = ScriptedCluster()
        self.cluster.users["good"] = "alice"
        self.cluster.allowed.add(("alice", "/metrics"))
        self.clock = ManualClock()
        self.events: list[Any] = []
        self.reviews = ReviewClient(self.cluster, options.pop("audiences", ()), self.clock)  # type: ignore[arg-type]
        self.access = Access(self.reviews, self.reviews, self.clock, self.events.append, **options)

    async def decide(self, token: str = "", path: str = "/metrics", certificate: bytes | None = None) -> Decision:
        headers = [("Authorization", f"Bearer {token}")] if token else []
        return await self.access.decide(RequestFacts(certificate, headers), NonResource(path))


@pytest.fixture
async def reviewed() -> Reviews:
    return Reviews()


async def test_a_known_user_with_the_right_is_allowed(reviewed):
    assert await reviewed.decide("good") == Decision("allowed", UserIdentity("alice"))
    assert reviewed.events == [AccessChecked("token", "allowed")]
    assert reviewed.cluster.requests[1] == (
        ACCESS_REVIEWS,
        {"user": "alice", "groups": [], "nonResourceAttributes": {"path": "/metrics", "verb": "get"}},
    )


async def test_a_user_without_the_right_is_named_with_the_verb_and_the_path(reviewed):
    decision = await reviewed.decide("good", "/v1/state")
    assert decision == Decision(
        "forbidden",
        UserIdentity("alice"),
        'user "alice" cannot get path "/v1/state": no role; grant it with RBAC',
    )
    assert reviewed.events == [AccessChecked("token", "forbidden", 'user "alice" cannot get path "/v1/state": no role')]


async def test_a_token_that_the_api_server_refuses_is_not_accepted_and_only_the_log_says_why(reviewed):
    assert await reviewed.decide("bad") == Decision("unauthenticated", None, "the token is not accepted")
    assert reviewed.events == [AccessChecked("token", "unauthenticated", "invalid bearer token")]


async def test_a_header_without_a_token_is_answered_with_the_reason(reviewed):
    facts = RequestFacts(None, [("Authorization", "Basic YTpi")])
    decision = await reviewed.access.decide(facts, METRICS)
    assert decision == Decision("unauthenticated", None, "the Authorization header is not of the scheme Bearer")
    assert reviewed.cluster.requests == []


async def test_without_credentials_nothing_is_reviewed(reviewed):
    assert (await reviewed.decide()).result == "unauthenticated"
    assert reviewed.events == [AccessChecked("none", "unauthenticated", "no credentials")]
    assert reviewed.cluster.requests == []


async def test_a_token_is_reviewed_for_the_configured_audiences():
    reviewed = Reviews(audiences=["igw"])
    assert (await reviewed.decide("good")).result == "allowed"
    assert reviewed.cluster.requests[0] == (TOKEN_REVIEWS, {"token": "good", "audiences": ["igw"]})


async def test_both_answers_are_kept_for_ten_seconds_and_asked_again_then(reviewed):
    for _ in range(3):
        await reviewed.decide("good")
        await reviewed.decide("bad")
    assert (reviewed.cluster.count(TOKEN_REVIEWS), reviewed.cluster.count(ACCESS_REVIEWS)) == (2, 1)
    reviewed.cluster.users = {"bad": "alice"}
    reviewed.clock.advance(KEEP_SECONDS - 0.1)
    assert (await reviewed.decide("good")).result == "allowed"
    assert (await reviewed.decide("bad")).result == "unauthenticated"
    reviewed.clock.advance(0.1)
    assert (await reviewed.decide("good")).result == "unauthenticated"
    assert (await reviewed.decide("bad")).result == "allowed"


async def test_a_right_that_is_taken_away_ends_after_ten_seconds(reviewed):
    assert (await reviewed.decide("good")).result == "allowed"
    reviewed.cluster.allowed.clear()
    assert (await reviewed.decide("good")).result == "allowed"
    reviewed.clock.advance(KEEP_SECONDS)
    assert (await reviewed.decide("good")).result == "forbidden"


async def test_no_token_is_kept(reviewed):
    await reviewed.decide("good")
    await reviewed.decide("bad")
    kept = repr(
        [vars(cache) for cache in (reviewed.reviews._accepted, reviewed.reviews._rejected, reviewed.reviews._access)]
    )
    assert "good" not in kept
    assert "'bad'" not in kept


async def test_many_wrong_tokens_push_no_right_one_out_and_are_bounded(reviewed, monkeypatch):
    monkeypatch.setattr(review_client, "MAX_KEPT", 4)
    reviewed = Reviews()
    await reviewed.decide("good")
    for number in range(20):
        await reviewed.decide(f"wrong-{number}")
    assert len(reviewed.reviews._rejected) == 4
    assert (await reviewed.decide("good")).result == "allowed"
    assert sum(1 for _, spec in reviewed.cluster.requests if spec.get("token") == "good") == 1


async def test_requests_with_the_same_token_share_one_review(reviewed):
    reviewed.cluster.hold()
    waiting = [asyncio.create_task(reviewed.decide("good")) for _ in range(20)]
    await eventually(lambda: reviewed.cluster.running == 1)
    waiting[0].cancel()  # a reader that leaves
    await asyncio.wait(waiting[:1])
    reviewed.cluster.release()
    decisions = await asyncio.gather(*waiting[1:])
    assert {decision.result for decision in decisions} == {"allowed"}
    assert (reviewed.cluster.count(TOKEN_REVIEWS), reviewed.cluster.count(ACCESS_REVIEWS)) == (1, 1)


async def test_reviews_at_a_time_and_those_that_wait_are_limited(reviewed):
    reviewed.cluster.hold()
    waiting = [asyncio.create_task(reviewed.decide(f"t{n}")) for n in range(MAX_REVIEWS + MAX_WAITING)]
    await eventually(lambda: reviewed.cluster.running == MAX_REVIEWS)
    refused = await reviewed.decide("one-more")
    assert refused.result == "unavailable"
    assert "wait for the API server already" in reviewed.events[-1].detail
    reviewed.cluster.release()
    assert {decision.result for decision in await asyncio.gather(*waiting)} == {"unauthenticated"}
    assert reviewed.cluster.max_running == MAX_REVIEWS
    assert (await reviewed.decide("good")).result == "allowed"


@pytest.mark.parametrize(
    ("failure", "detail"),
    [
        (Unreachable("ConnectionRefusedError"), "the API server cannot be reached: ConnectionRefusedError"),
        (ApiFailed(500, "etcd"), "the API server answered 500: etcd"),
        (ApiFailed(429, "too many"), "the API server answered 429: too many"),
        (ApiFailed(403, "no"), "the agent may not create tokenreviews; bind its ServiceAccount to the ClusterRole"),
        (ApiFailed(401, "no"), "the API server does not accept the agent's own credentials"),
    ],
)
async def test_where_the_api_server_cannot_answer_a_token_is_neither_right_nor_wrong(reviewed, failure, detail):
    reviewed.cluster.failure = failure
    decision = await reviewed.decide("good")
    assert (decision.result, decision.identity) == ("unavailable", None)
    assert detail not in decision.message  # what is wrong in the cluster is for the log
    assert reviewed.events[-1].detail.startswith(detail)
    reviewed.cluster.failure = None
    assert (await reviewed.decide("good")).result == "allowed"


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"status": []}', b"<html>"])
async def test_an_answer_that_cannot_be_read_admits_nobody(reviewed, answer):
    reviewed.cluster.answer = answer
    assert (await reviewed.decide("good")).result == "unavailable"


async def test_a_lost_api_server_admits_nobody_whose_right_is_not_known(reviewed):
    await reviewed.decide("good")
    reviewed.cluster.failure = Unreachable("gone")
    assert (await reviewed.decide("good")).result == "allowed"
    assert (await reviewed.decide("good", "/v1/state")).result == "unavailable"
    reviewed.clock.advance(KEEP_SECONDS)
    assert (await reviewed.decide("good")).result == "unavailable"


async def test_outside_a_cluster_the_reason_is_that(reviewed):
    reviewed.cluster.no_cluster = NoCluster("no API server: set kubernetes.kubeconfig")
    assert (await reviewed.decide("good")).result == "unavailable"
    assert reviewed.events[-1].detail == "no API server: set kubernetes.kubeconfig"


async def test_an_api_server_that_hangs_is_waited_for_no_longer_than_the_limit(reviewed, monkeypatch):
    monkeypatch.setattr(review_client, "REVIEW_SECONDS", 0.0)
    reviewed.cluster.hold()
    assert (await reviewed.decide("good")).result == "unavailable"
    assert reviewed.events[-1].detail == "the API server did not answer within 0 s"
    reviewed.cluster.release()
    await eventually(lambda: reviewed.cluster.count(TOKEN_REVIEWS) == 1)  # its answer counts for the next request
    monkeypatch.setattr(review_client, "REVIEW_SECONDS", 5.0)
    assert (await reviewed.decide("good")).result == "allowed"
    assert reviewed.cluster.count(TOKEN_REVIEWS) == 1


async def test_a_client_certificate_needs_no_review_of_a_token():
    authority = Issuer(begins=WALL_AT_ZERO - HOUR, ends=WALL_AT_ZERO + HOUR)
    reviewed = Reviews(trust=lambda: Trust(clients=authority.bundle))
    certificate = authority.client("alice", begins=WALL_AT_ZERO - HOUR, ends=WALL_AT_ZERO + HOUR)
    assert (await reviewed.decide(certificate=certificate)).result == "allowed"
    assert reviewed.cluster.count(TOKEN_REVIEWS) == 0
    reviewed.clock.advance(HOUR + 1)
    refused = await reviewed.decide(certificate=certificate)
    assert refused.result == "unauthenticated"
    assert refused.message.startswith("the client certificate expired at ")
    assert reviewed.events[-1].method == CLIENT_CERTIFICATE


async def test_without_permissions_every_known_user_is_allowed():
    class Tokens:
        async def identity_of(self, token: str) -> UserIdentity | str:
            if token == "unreadable":
                raise CannotCheck("the file is gone")
            return UserIdentity("bob") if token == "good" else "unknown"

    access = Access(Tokens(), None, ManualClock(), ignore)
    results = [
        (await access.decide(RequestFacts(None, [("authorization", f"Bearer {token}")]), METRICS)).result
        for token in ("good", "bad", "unreadable")
    ]
    assert results == ["allowed", "unauthenticated", "unavailable"]
