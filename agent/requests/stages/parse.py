"""The first stage: a request body becomes the model, the prompt and the salt, and is released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.events import Hook, ignore
from agent.events.requests import EncodedBody
from agent.pick.request import Prompt
from agent.requests.body import MAX_BODY, BodyRefused, parse
from agent.requests.prompt_rules import rules_of
from agent.requests.rejections import Rejection
from agent.requests.ticket import CONTINUE, Result, Ticket
from agent.requests.unpack import label

_EMPTY: Final = Prompt("", b"")


def _unknown_engine() -> str:
    return ""


class ParseStage:
    """Reads the body. A request without one has an empty prompt.

    `engine` returns the engine that all endpoints of the pool have, or an empty text; `max_body` is the limit of an
    unpacked body in bytes. Bodies with a content-encoding are reported to `hook`, with the name of the pool.
    """

    name = "parse"

    def __init__(
        self,
        engine: Callable[[], str] = _unknown_engine,
        max_body: int = MAX_BODY,
        hook: Hook = ignore,
        pool: str = "",
    ) -> None:
        self._engine = engine
        self._max_body = max_body
        self._hook = hook
        self._pool = pool

    def process(self, ticket: Ticket, now: float) -> Result:
        """CONTINUE with `prompt` and `model` set, or the rejection of a body that cannot be routed."""
        body = ticket.body
        if body is None:
            ticket.prompt = _EMPTY
            return CONTINUE
        ticket.body = None
        try:
            prompt = parse(
                body, ticket.path, ticket.encoding, ticket.content_type, rules_of(self._engine()), self._max_body
            )
        except BodyRefused as refused:
            self._count_encoded(ticket, "refused")
            return Rejection(refused.reason, refused.message, refused.param)
        self._count_encoded(ticket, "read" if prompt.text else "unread")
        ticket.prompt = prompt
        ticket.model = prompt.model
        return CONTINUE

    def shut_down(self, now: float) -> None:
        """Nothing: it holds no ticket."""

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """Never called: the stage does not wait."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """Nothing to account for."""

    def _count_encoded(self, ticket: Ticket, result: str) -> None:
        if ticket.encoding and ticket.encoding != "identity":
            self._hook(EncodedBody(self._pool, label(ticket.encoding), result))
