"""The first stage: a request body becomes the model, the prompt and the salt, and is released."""

from __future__ import annotations

from typing import Final

from agent.pick.request import Prompt
from agent.requests.body import BodyRefused, parse
from agent.requests.rejections import Rejection
from agent.requests.ticket import CONTINUE, Result, Ticket

_EMPTY: Final = Prompt("", b"")


class ParseStage:
    """Reads the body. A request without one has an empty prompt."""

    name = "parse"

    def process(self, ticket: Ticket, now: float) -> Result:
        """CONTINUE with `prompt` and `model` set, or the rejection of a body that cannot be routed."""
        body = ticket.body
        if body is None:
            ticket.prompt = _EMPTY
            return CONTINUE
        ticket.body = None
        try:
            prompt = parse(body, ticket.path, ticket.encoding)
        except BodyRefused as refused:
            return Rejection(refused.reason, refused.message, refused.param)
        ticket.prompt = prompt
        ticket.model = prompt.model
        return CONTINUE

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """Never called: the stage does not wait."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """Nothing to account for."""
