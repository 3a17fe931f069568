"""The chat workload of the demo, planned before the first request: equal shape and seed give equal bytes.

Theory. Several tenants each have a long system prompt, and their popularity follows Zipf's law. Their users hold
conversations: each turn sends all previous messages and a new question. Requests arrive as a Poisson process,
regardless of backlog (open loop); clients that waited for one answer before the next request would relieve a slow
fleet. An arrival continues a conversation whose last turn is long enough ago, or begins a new one.

So a prompt consists of a system prompt (shared by a tenant's conversations), a history (shared by a conversation's
turns) and a question (new). If the shared parts are in the cache of the picked server, only the question is computed.
The history contains generated answers and not those of the servers, so that every way to pick gets equal requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

# Tokens that a chat template may add to each message: role, beginning and end.
TEMPLATE_TOKENS: Final = 8
MIN_PROMPT_TOKENS: Final = 256
_WORDS: Final = (
    "able acid aged also area army away baby back ball band bank base bath bear beat been beer bell belt best bill"
    " blow blue boat body bond bone book boom born boss both bowl bulk burn bush busy call calm came camp card care"
    " case cash cast cell chat chip city club coal coat code cold come cook cool cope copy core cost crew crop dark"
).split()


@dataclass(frozen=True, slots=True)
class WorkloadShape:
    """The parameters of the workload; tokens are estimated by `bytes_per_token`, times are seconds."""

    rate: float = 24.0  # requests per second
    seconds: float = 14.0  # duration of the arrivals
    tenants: int = 16
    skew: float = 1.5  # a tenant's popularity is rank ** -skew
    system_tokens: int = 2000
    question_tokens: int = 680
    answer_tokens: int = 12
    turns: int = 3  # maximum per conversation
    think_seconds: float = 2.0  # minimum between two turns of a conversation
    continue_ratio: float = 0.5  # ratio of arrivals that continue a conversation, if there is one
    bytes_per_token: float = 4.0
    seed: int = 1

    @property
    def prompt_tokens(self) -> int:
        """The length of the longest possible prompt, chat template included."""
        messages = self.system_tokens + self.turns * self.question_tokens + (self.turns - 1) * self.answer_tokens
        return messages + 2 * self.turns * TEMPLATE_TOKENS

    def within(self, prompt_tokens: int) -> WorkloadShape:
        """The shape scaled down so that its longest prompt fits. ValueError below MIN_PROMPT_TOKENS."""
        if prompt_tokens < MIN_PROMPT_TOKENS:
            raise ValueError(f"prompts of {prompt_tokens} tokens are too short; allow at least {MIN_PROMPT_TOKENS}")
        if prompt_tokens >= self.prompt_tokens:
            return self
        answer = min(self.answer_tokens, prompt_tokens // 64)
        fixed = (self.turns - 1) * answer + 2 * self.turns * TEMPLATE_TOKENS
        scale = (prompt_tokens - fixed) / (self.system_tokens + self.turns * self.question_tokens)
        return replace(
            self,
            system_tokens=int(self.system_tokens * scale),
            question_tokens=int(self.question_tokens * scale),
            answer_tokens=answer,
        )

    def popularity(self) -> list[float]:
        """The ratio of new conversations of each tenant, the most popular first."""
        weights = [(rank + 1) ** -self.skew for rank in range(self.tenants)]
        total = sum(weights)
        return [weight / total for weight in weights]


class ChatMessage(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


class ChatTurn(NamedTuple):
    """One request: its time (seconds from the beginning), its tenant, its turn `number`, and its messages.

    `prompt_tokens` is the estimated length of the prompt; `known_tokens` of them were sent before by this tenant or in
    this conversation, so an unlimited cache would hit them.
    """

    at: float
    tenant: int
    conversation: int
    number: int
    messages: tuple[ChatMessage, ...]
    prompt_tokens: int
    known_tokens: int


@dataclass(slots=True)
class _Conversation:
    """A conversation while it is planned."""

    id: int
    tenant: int
    messages: list[ChatMessage]
    turns: int
    last_at: float
    known_tokens: int


def plan(shape: WorkloadShape, salt: str = "") -> list[ChatTurn]:
    """All requests in the order of their times. With another `salt` the prompts have no common prefix with these."""
    rng = Random(f"{shape.seed} times")
    systems = [_text(shape, f"{salt}Tenant {tenant}.", shape.system_tokens) for tenant in range(shape.tenants)]
    bounds = list(accumulate(shape.popularity()))
    seen: set[int] = set()
    open_conversations: list[_Conversation] = []
    turns: list[ChatTurn] = []
    count = 0
    at = rng.expovariate(shape.rate)
    while at < shape.seconds:
        ready = [item for item in open_conversations if at - item.last_at >= shape.think_seconds]
        continues = rng.random() < shape.continue_ratio
        tenant = _draw(bounds, rng.random())
        position = rng.random()
        if continues and ready:
            conversation = ready[int(position * len(ready))]
        else:
            known = shape.system_tokens if tenant in seen else 0
            conversation = _Conversation(count, tenant, [ChatMessage("system", systems[tenant])], 0, at, known)
            open_conversations.append(conversation)
            seen.add(tenant)
            count += 1
        question = _text(
            shape, f"Question {conversation.turns} of conversation {conversation.id}.", shape.question_tokens
        )
        conversation.messages.append(ChatMessage("user", question))
        length = sum(_tokens(shape, message.content) for message in conversation.messages)
        turns.append(
            ChatTurn(
                at,
                conversation.tenant,
                conversation.id,
                conversation.turns,
                tuple(conversation.messages),
                length,
                conversation.known_tokens,
            )
        )
        conversation.known_tokens = length
        conversation.turns += 1
        conversation.last_at = at
        conversation.messages.append(ChatMessage("assistant", _text(shape, "", shape.answer_tokens)))
        if conversation.turns == shape.turns:
            open_conversations.remove(conversation)
        at += rng.expovariate(shape.rate)
    return turns


def best_hit_ratio(turns: list[ChatTurn]) -> float:
    """Known over all prompt tokens: the prefix hit ratio of one server with an unlimited cache."""
    return sum(turn.known_tokens for turn in turns) / max(1, sum(turn.prompt_tokens for turn in turns))


def _draw(bounds: list[float], value: float) -> int:
    return next((index for index, bound in enumerate(bounds) if value < bound), len(bounds) - 1)


def _tokens(shape: WorkloadShape, text: str) -> int:
    return round(len(text) / shape.bytes_per_token)


def _text(shape: WorkloadShape, beginning: str, tokens: int) -> str:
    """ASCII text of `tokens` tokens that starts with `beginning` and depends only on it and the seed."""
    size = round(tokens * shape.bytes_per_token)
    words = Random(f"{shape.seed} {beginning}").choices(_WORDS, k=size // 5 + 1)
    return f"{beginning} {' '.join(words)}"[:size]
