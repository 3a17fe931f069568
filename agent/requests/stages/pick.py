"""The last stage: an endpoint is picked, and the request counts as in flight there until it ends."""

from __future__ import annotations

from collections.abc import Callable

from agent.events import Hook
from agent.events.requests import Ended, Picked
from agent.pick.decision import NoPick, Pick
from agent.pick.picker import pick
from agent.pick.profile import Profile
from agent.prefix.index import PrefixIndex
from agent.requests.outcomes import Outcomes
from agent.requests.rejections import Rejection
from agent.requests.sharing import NOT_SHARED, Sharing
from agent.requests.ticket import Result, Ticket
from agent.state.store import RoutingStore


class PickStage:
    """Picks by `profile`, which may be replaced at any time and holds for the next pick.

    `now` measures what the decision takes; `remember` keeps picks for people to read: pool, pick, time. `unlisted` is
    called with the model and the time of a request whose model no server lists, where any server lists models.
    """

    name = "pick"

    def __init__(
        self,
        store: RoutingStore,
        index: PrefixIndex,
        profile: Profile,
        now: Callable[[], float],
        hook: Hook,
        remember: Callable[[str, Pick, float], None],
        fallbacks: int,
        outcomes: Outcomes,
        unlisted: Callable[[str, float], None],
        sharing: Sharing = NOT_SHARED,
    ) -> None:
        self.profile = profile
        self._store = store
        self._index = index
        self._now = now
        self._hook = hook
        self._remember = remember
        self._fallbacks = fallbacks
        self._outcomes = outcomes
        self._unlisted = unlisted
        self._sharing = sharing

    def process(self, ticket: Ticket, now: float) -> Result:
        """The pick, counted as in flight and in the prefix index, or the rejection with its reason."""
        wanted = ticket.wanted
        if wanted is None:
            raise ValueError("the stage needs tokens; put it behind the stage that counts them")
        store, profile = self._store, self.profile
        snapshot, model = store.snapshot(now), wanted.model
        if model and model not in snapshot.models_everywhere and store.lists_models and not store.serves(model):
            self._unlisted(model, now)
        answer = pick(snapshot, wanted, profile, self._index, now, self._fallbacks)
        if isinstance(answer, NoPick):
            return Rejection(answer.reason, f"No model server is available: {answer.detail}")
        ticket.picked_at = now
        if wanted.chain:
            self._index.record(answer.endpoint, wanted.chain)
        self._remember(store.pool, answer, now)
        self._hook(
            Picked(
                store.pool,
                profile.name,
                wanted.model,
                answer.endpoint,
                wanted.prompt_tokens,
                answer.hit_tokens,
                answer.left_warmest,
                self._now() - now,
                ticket.requested,
            )
        )
        # Last: what is in flight must end, and a step above that raises would leave no one to end it.
        ticket.work_id = store.started(answer.endpoint, answer.uncached_tokens, answer.hit_tokens, now)
        ticket.endpoint = answer.endpoint
        self._sharing.started(
            ticket.work_id, answer.endpoint, answer.uncached_tokens, answer.hit_tokens, wanted.chain, now
        )
        self._outcomes.picked(ticket, wanted.chain, answer.hit_tokens // wanted.block_tokens, wanted.block_tokens)
        return answer

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """Never called: the stage does not wait."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """The request leaves the endpoint's work in flight."""
        self._store.ended(ticket.work_id, now)
        self._sharing.ended(ticket.work_id)
        self._outcomes.ended(ticket, how, now)
        if ticket.pick is not None:
            took = now - ticket.picked_at
            self._hook(Ended(self._store.pool, ticket.model, ticket.endpoint, took, how, ticket.requested))
