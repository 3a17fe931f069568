"""The decision about one request: who sends it, whether that is allowed to, and otherwise the answer and its words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, Protocol

from agent.clock import Clock
from agent.events import Hook
from agent.events.access import AccessChecked
from agent.kube.authn.identity import (
    NO_METHOD,
    TOKEN,
    Anonymous,
    CannotCheck,
    CredentialsRefused,
    NeedsTokenReview,
    RequestFacts,
    Trust,
    UserIdentity,
    identify,
)
from agent.kube.authn.reviews import AccessAnswer, Attributes

ALLOWED: Final = "allowed"
UNAUTHENTICATED: Final = "unauthenticated"
FORBIDDEN: Final = "forbidden"
UNAVAILABLE: Final = "unavailable"
RESULTS: Final = (ALLOWED, UNAUTHENTICATED, FORBIDDEN, UNAVAILABLE)


class Decision(NamedTuple):
    """The result (one of RESULTS), who it is where that is known, and a sentence for the client."""

    result: str
    identity: UserIdentity | None
    message: str = ""


class TokenCheck(Protocol):
    """What knows the identities of tokens."""

    async def identity_of(self, token: str) -> UserIdentity | str:
        """The identity of a token, or why it has none. Raises CannotCheck."""
        ...


class AccessCheck(Protocol):
    """What knows who may do what."""

    async def may(self, identity: UserIdentity, attributes: Attributes) -> AccessAnswer:
        """Whether the identity may do this. Raises CannotCheck."""
        ...


class Access:
    """Decides about requests. `trust` is read for each of them; without `permissions` every known user may do all."""

    def __init__(
        self,
        tokens: TokenCheck,
        permissions: AccessCheck | None,
        clock: Clock,
        hook: Hook,
        trust: Callable[[], Trust] = Trust,
    ) -> None:
        self._tokens = tokens
        self._permissions = permissions
        self._clock = clock
        self._hook = hook
        self._trust = trust

    async def decide(self, facts: RequestFacts, attributes: Attributes) -> Decision:
        """Whether the sender of a request may do this."""
        method, detail, message = NO_METHOD, "", ""
        try:
            found = identify(facts, self._trust(), self._clock.wall())
            if isinstance(found, NeedsTokenReview):
                method = TOKEN
                checked = await self._tokens.identity_of(found.token)
                if isinstance(checked, str):
                    found, message = CredentialsRefused(TOKEN, checked), "the token is not accepted"
                else:
                    found = checked
            match found:
                case UserIdentity():
                    method = found.method
                    decision, detail = await self._authorized(found, attributes)
                case CredentialsRefused(method, detail):
                    # Why a token is not accepted is for the log only: it may help to guess one.
                    decision = Decision(UNAUTHENTICATED, None, message or detail)
                case Anonymous():
                    detail = "no credentials"
                    decision = Decision(UNAUTHENTICATED, None, "send a bearer token in the Authorization header")
        except CannotCheck as error:
            detail = str(error)
            decision = Decision(
                UNAVAILABLE, None, "the credentials cannot be checked now; the agent's log has the reason"
            )
        self._hook(AccessChecked(method, decision.result, detail))
        return decision

    async def _authorized(self, identity: UserIdentity, attributes: Attributes) -> tuple[Decision, str]:
        if self._permissions is None:
            return Decision(ALLOWED, identity), ""
        answer = await self._permissions.may(identity, attributes)
        if answer.allowed:
            return Decision(ALLOWED, identity), ""
        message = f'user "{identity.user}" cannot {attributes}'
        because = f": {answer.reason}" if answer.reason else ""
        return Decision(FORBIDDEN, identity, f"{message}{because}; grant it with RBAC"), f"{message}{because}"
