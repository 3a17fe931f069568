"""The stage before the pick: a prompt becomes a number of tokens and the hashes of its blocks, and is released."""

from __future__ import annotations

from agent.pick.request import PickRequest
from agent.prefix.blocks import chain, seed
from agent.requests.ticket import CONTINUE, Result, Ticket


class TokensStage:
    """Estimates tokens from bytes, because the agent does not have the tokenizers of the models.

    `block_tokens` and `bytes_per_token` are those of the prefix index; at most `max_tokens` of a prompt are hashed.
    """

    name = "tokens"

    def __init__(self, block_tokens: int, bytes_per_token: int, max_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._bytes_per_token = bytes_per_token
        self._block_bytes = block_tokens * bytes_per_token
        self._max_blocks = max_tokens // block_tokens

    def process(self, ticket: Ticket, now: float) -> Result:
        """CONTINUE with `wanted` set."""
        prompt = ticket.prompt
        if prompt is None:
            raise ValueError("the stage needs a prompt; put it behind the stage that parses bodies")
        ticket.prompt = None
        text = prompt.text
        tokens = -(-len(text) // self._bytes_per_token)
        hashes = chain(text, self._block_bytes, seed(prompt.model, prompt.salt), self._max_blocks)
        ticket.wanted = PickRequest(
            ticket.request_id,
            prompt.model,
            tokens,
            hashes,
            self._block_tokens,
            ticket.subset,
            prompt.max_output_tokens,
        )
        return CONTINUE

    def shut_down(self, now: float) -> None:
        """Nothing: it holds no ticket."""

    def cancelled(self, ticket: Ticket, now: float) -> None:
        """Never called: the stage does not wait."""

    def ended(self, ticket: Ticket, how: str, now: float) -> None:
        """Nothing to account for."""
