"""Reviews by the API server, each answer kept for ten seconds: what tokens stand for, and who may do what.

Requests with the same question share one review. At most MAX_REVIEWS run at a time, because each holds a thread until
the API server answers, and MAX_WAITING wait for that; a request beyond, or one that waits for REVIEW_SECONDS, gets
CannotCheck. While the API server does not answer, a request whose answer is not kept is therefore refused. Refused
tokens have a table of their own, so that guesses do not push accepted ones out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Final, TypeVar

from agent.clock import Clock
from agent.kube.authn.expiring_cache import ExpiringCache
from agent.kube.authn.identity import CannotCheck, UserIdentity
from agent.kube.authn.reviews import (
    ACCESS_REVIEWS,
    TOKEN_REVIEWS,
    AccessAnswer,
    Attributes,
    access_answer,
    access_review,
    reviewed_identity,
    token_review,
)
from agent.kube.authn.token_file import token_hash
from agent.kube.cache import UnreadableAnswer
from agent.kube.cluster import Cluster
from agent.kube.errors import ApiFailed, NoCluster, Unreachable

T = TypeVar("T")
KEEP_SECONDS: Final = 10.0  # as Kubernetes' aggregated API servers keep both answers
MAX_KEPT: Final = 1024  # of each kind: the readers of an admin port are few
MAX_REVIEWS: Final = 8
MAX_WAITING: Final = 64
REVIEW_SECONDS: Final = 5.0  # Prometheus ends a scrape after 10 s


class ReviewClient:
    """Asks the API server of a cluster. A token has to be for one of `audiences`; without any, for the API server."""

    def __init__(self, cluster: Cluster, audiences: Sequence[str], clock: Clock) -> None:
        self._cluster = cluster
        self._audiences = tuple(audiences)
        self._clock = clock
        self._accepted: ExpiringCache[bytes, UserIdentity] = ExpiringCache(MAX_KEPT)
        self._rejected: ExpiringCache[bytes, str] = ExpiringCache(MAX_KEPT)
        self._access: ExpiringCache[tuple[UserIdentity, Attributes], AccessAnswer] = ExpiringCache(MAX_KEPT)
        self._running: dict[Hashable, asyncio.Task[Any]] = {}
        self._slots = asyncio.Semaphore(MAX_REVIEWS)

    async def identity_of(self, token: str) -> UserIdentity | str:
        """The identity of a token, or why it has none. Raises CannotCheck."""
        key = token_hash(token)
        now = self._clock.now()
        known = self._accepted.get(key, now) or self._rejected.get(key, now)
        if known is not None:
            return known

        async def review() -> UserIdentity | str:
            answer = await self._post(TOKEN_REVIEWS, token_review(token, self._audiences), "tokenreviews")
            found = _decoded(reviewed_identity, answer, self._audiences)
            until = self._clock.now() + KEEP_SECONDS
            if isinstance(found, UserIdentity):
                self._accepted.put(key, found, until)
            else:
                self._rejected.put(key, found, until)
            return found

        return await self._shared(key, review)

    async def may(self, identity: UserIdentity, attributes: Attributes) -> AccessAnswer:
        """Whether the identity may do this. Raises CannotCheck."""
        key = (identity, attributes)
        known = self._access.get(key, self._clock.now())
        if known is not None:
            return known

        async def review() -> AccessAnswer:
            body = access_review(identity, attributes)
            found = _decoded(access_answer, await self._post(ACCESS_REVIEWS, body, "subjectaccessreviews"))
            self._access.put(key, found, self._clock.now() + KEEP_SECONDS)
            return found

        return await self._shared(key, review)

    # -- within --------------------------------------------------------------------------------------------------------

    async def _shared(self, key: Hashable, review: Callable[[], Coroutine[None, None, T]]) -> T:
        """The result of the review with this key that is running, or of a new one."""
        task: asyncio.Task[T] | None = self._running.get(key)
        if task is None:
            if len(self._running) >= MAX_REVIEWS + MAX_WAITING:
                raise CannotCheck(f"{len(self._running)} reviews wait for the API server already; retry later")
            task = asyncio.create_task(review(), name="review")
            self._running[key] = task
            task.add_done_callback(lambda done: self._ended(key, done))
        try:
            async with asyncio.timeout(REVIEW_SECONDS):
                return await asyncio.shield(task)  # one reader that leaves does not end it for the others
        except TimeoutError:
            raise CannotCheck(f"the API server did not answer within {REVIEW_SECONDS:g} s") from None

    def _ended(self, key: Hashable, task: asyncio.Task[Any]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # its error is retrieved where no request waits for it

    async def _post(self, path: str, body: bytes, resource: str) -> bytes:
        async with self._slots:
            try:
                client = await self._cluster.connect()
                answer: bytes = await self._cluster.run(client.send, "POST", path, body)
            except NoCluster as error:
                raise CannotCheck(str(error)) from error
            except Unreachable as error:
                raise CannotCheck(f"the API server cannot be reached: {error}") from error
            except ApiFailed as error:
                raise CannotCheck(_advice(error, resource)) from error
        return answer


def _advice(error: ApiFailed, resource: str) -> str:
    match error.status:
        case 403:
            return (
                f"the agent may not create {resource}; bind its ServiceAccount to the ClusterRole system:auth-delegator"
            )
        case 401:
            return "the API server does not accept the agent's own credentials; check its ServiceAccount or kubeconfig"
    return f"the API server answered {error}"


def _decoded(decode: Callable[..., T], *arguments: object) -> T:
    try:
        return decode(*arguments)
    except UnreadableAnswer as error:
        raise CannotCheck(f"the API server's answer cannot be read: {error}") from error
