"""The last stage: an endpoint is picked, and the request counts as in flight there until it ends. Where no endpoint has
room, it is held until one has."""

from __future__ import annotations

from collections.abc import Callable

from agent.events import Hook
from agent.events.flow import HELD, RequestSubmitted
from agent.events.requests import Ended, Picked
from agent.flow.outcomes import DIRECT
from agent.pick.decision import NoPick, Pick
from agent.pick.picker import pick
from agent.pick.profile import Profile
from agent.prefix.index import PrefixIndex
from agent.requests.flow_terms import FlowHeaders, FlowTerms, default_terms
from agent.requests.held_requests import HeldRequests
from agent.requests.outcomes import Outcomes
from agent.requests.rejections import Rejection
from agent.requests.sharing import NOT_SHARED, Sharing
from agent.requests.ticket import WAIT, Result, Ticket
from agent.state.store import RoutingStore


class PickStage:
    """Picks by `profile`, which may be replaced at any time and holds for the next pick.

    `now` measures what the decision takes; `remember` keeps picks for people to read: pool, pick, time. `unlisted` is
    called with the model and the time of a request whose model no server lists, where any server lists models. `held`
    holds requests for which no endpoint has room, by the `terms` of their headers and model; None: none are held.
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
        held: HeldRequests | None = None,
        terms: Callable[[FlowHeaders, str], FlowTerms] = default_terms,
    ) -> None:
        self.profile = profile
        self._held = held
        self._terms = terms
        if held is not None:
            held.dispatcher = self
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
        """The pick, counted as in flight and in the prefix index, WAIT, or the rejection with its reason."""
        wanted = ticket.wanted
        if wanted is None:
            raise ValueError("the stage needs tokens; put it behind the stage that counts them")
        store, model, held = self._store, wanted.model, self._held
        ticket.terms = self._terms(ticket.flow_headers, ticket.requested or ticket.model)
        snapshot = store.snapshot(now)
        if model and model not in snapshot.models_everywhere and store.lists_models and not store.serves(model):
            self._unlisted(model, now)
        if held is not None and held.waiting:
            return self._submit(held, ticket, now)
        answer = pick(snapshot, wanted, self.profile, self._index, now, self._fallbacks)
        if isinstance(answer, NoPick):
            if held is not None and held.holds_at_zero(answer.reason):
                return self._submit(held, ticket, now)
            return Rejection(answer.reason, f"No model server is available: {answer.detail}")
        if held is not None and not held.admits(answer, snapshot, now):
            return self._submit(held, ticket, now)
        self.dispatch(ticket, answer, now)
        return answer

    def pick(self, ticket: Ticket, now: float, only: str = "") -> Pick | NoPick:
        """The pick for a request that is dispatched after it was held, from all endpoints or from this one alone."""
        wanted = ticket.wanted
        if wanted is None:
            raise ValueError("the request is over")
        if only:
            wanted = wanted._replace(subset=frozenset({only}))
        return pick(self._store.snapshot(now), wanted, self.profile, self._index, now, self._fallbacks)

    def dispatch(self, ticket: Ticket, answer: Pick, now: float) -> None:
        """Count the request as in flight at the picked endpoint, and its prompt in the prefix index."""
        wanted, store = ticket.wanted, self._store
        if wanted is None:
            raise ValueError("the request is over")
        ticket.picked_at = now
        if wanted.chain:
            self._index.record(answer.endpoint, wanted.chain)
        self._remember(store.pool, answer, now)
        self._hook(
            Picked(
                store.pool,
                self.profile.name,
                wanted.model,
                answer.endpoint,
                wanted.prompt_tokens,
                answer.hit_tokens,
                answer.left_warmest,
                self._now() - now,
                ticket.requested,
                ticket.terms.caller,
                ticket.terms.priority,
            )
        )
        # Last: what is in flight must end, and a step above that raises would leave no one to end it.
        ticket.work_id = store.started(answer.endpoint, answer.uncached_tokens, answer.hit_tokens, now)
        ticket.endpoint = answer.endpoint
        if self._held is not None:
            self._held.sent(answer.endpoint, wanted.prompt_tokens, now)
        self._sharing.started(
            ticket.work_id, answer.endpoint, answer.uncached_tokens, answer.hit_tokens, wanted.chain, now
        )
        self._outcomes.picked(ticket, wanted.chain, answer.hit_tokens // wanted.block_tokens, wanted.block_tokens)

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """The client of a held request left."""
        if self._held is not None:
            self._held.cancelled(ticket, now)

    def shut_down(self, now: float) -> None:
        """Refuse every held request."""
        if self._held is not None:
            self._held.shut_down(now)

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """The request leaves the endpoint's work in flight."""
        if self._held is not None and ticket.pick is not None:
            self._held.ended(ticket.pick.endpoint, ticket.picked_at, now)
        self._store.ended(ticket.work_id, now)
        self._sharing.ended(ticket.work_id)
        self._outcomes.ended(ticket, how, now)
        if ticket.pick is not None:
            took, terms = now - ticket.picked_at, ticket.terms
            self._hook(
                Ended(
                    self._store.pool,
                    ticket.model,
                    ticket.endpoint,
                    took,
                    how,
                    ticket.requested,
                    terms.caller,
                    terms.priority,
                )
            )

    def _submit(self, held: HeldRequests, ticket: Ticket, now: float) -> Result:
        terms, before = ticket.terms, self._now()
        result = held.submit(ticket, terms, now)
        outcome = HELD if result is WAIT else result.reason if isinstance(result, Rejection) else DIRECT
        took = self._now() - before
        self._hook(RequestSubmitted(self._store.pool, terms.priority, terms.caller, outcome, took))
        return result
