"""The chat workload of the demo, made whole before the first request is sent: the same shape and seed, the same bytes.

Theory. Several tenants have a long system prompt each, and some tenants are far more popular than others (Zipf). Their
users hold conversations: each turn sends everything said so far and a new question with a text to read. Requests
arrive as a Poisson process that waits for nobody (an open loop): a fleet that falls behind is not spared, as it would
be by clients that wait for one answer before they ask again. An arrival continues a conversation whose last turn is
long enough ago, or begins a new one.

So a prompt is a system prompt (shared by a tenant's conversations), a history (shared by a conversation's turns) and a
question (new). Where the shared parts lie in the cache of the server that is picked, only the question is work. The
history holds made-up answers and not those that the servers gave, so that every way to pick gets the same requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

# What a chat template may put around messages, in tokens a message: role, beginning and end.
TEMPLATE_TOKENS: Final = 8
MIN_PROMPT_TOKENS: Final = 256
_WORDS: Final = (
    "able acid aged also area army away baby back ball band bank base bath bear beat been beer bell belt best bill"
    " blow blue boat body bond bone book boom born boss both bowl bulk burn bush busy call calm came camp card care"
    " case cash cast cell chat chip city club coal coat code cold come cook cool cope copy core cost crew crop dark"
).split()


@dataclass(frozen=True, slots=True)
class Shape:
    """What the workload is like; tokens are estimated at `bytes_per_token`, times are seconds."""

    rate: float = 24.0  # requests a second
    seconds: float = 14.0  # how long they arrive
    tenants: int = 16
    skew: float = 1.5  # a tenant's popularity is rank ** -skew
    system_tokens: int = 2000
    question_tokens: int = 680
    answer_tokens: int = 12
    turns: int = 3  # the most of a conversation
    think_seconds: float = 2.0  # the least between two turns of a conversation
    continue_ratio: float = 0.5  # arrivals that go on with a conversation, where there is one to go on with
    bytes_per_token: float = 4.0
    seed: int = 1

    @property
    def prompt_tokens(self) -> int:
        """The longest prompt that the workload can hold, chat template included."""
        said = self.system_tokens + self.turns * self.question_tokens + (self.turns - 1) * self.answer_tokens
        return said + 2 * self.turns * TEMPLATE_TOKENS

    def within(self, prompt_tokens: int) -> Shape:
        """The shape made smaller, in proportion, until its longest prompt fits. ValueError below the least bound."""
        if prompt_tokens < MIN_PROMPT_TOKENS:
            raise ValueError(f"prompts of {prompt_tokens} tokens are too short; allow at least {MIN_PROMPT_TOKENS}")
        if prompt_tokens >= self.prompt_tokens:
            return self
        answer = min(self.answer_tokens, prompt_tokens // 64)
        fixed = (self.turns - 1) * answer + 2 * self.turns * TEMPLATE_TOKENS
        part = (prompt_tokens - fixed) / (self.system_tokens + self.turns * self.question_tokens)
        return replace(
            self,
            system_tokens=int(self.system_tokens * part),
            question_tokens=int(self.question_tokens * part),
            answer_tokens=answer,
        )

    def popularity(self) -> list[float]:
        """The part of the new conversations that each tenant has, the most popular first."""
        weights = [(rank + 1) ** -self.skew for rank in range(self.tenants)]
        whole = sum(weights)
        return [weight / whole for weight in weights]


class Message(NamedTuple):
    """One message of a chat."""

    role: str
    content: str


class Turn(NamedTuple):
    """One request: when it is sent (seconds from the beginning), by whom, and what it says.

    `prompt_tokens` is the estimated length of the prompt, `known_tokens` the part that was said before by this tenant
    or in this conversation: what a cache that forgets nothing would have.
    """

    at: float
    tenant: int
    conversation: int
    number: int
    messages: tuple[Message, ...]
    prompt_tokens: int
    known_tokens: int


@dataclass(slots=True)
class _Conversation:
    """A conversation while it is made up."""

    id: int
    tenant: int
    messages: list[Message]
    turns: int
    last_at: float
    known_tokens: int


def plan(shape: Shape, salt: str = "") -> list[Turn]:
    """All requests in the order of their times. Another `salt` gives the same requests with nothing in common."""
    dice = Random(f"{shape.seed} times")
    systems = [_text(shape, f"{salt}Tenant {tenant}.", shape.system_tokens) for tenant in range(shape.tenants)]
    bounds = list(accumulate(shape.popularity()))
    seen: set[int] = set()
    open_ones: list[_Conversation] = []
    turns: list[Turn] = []
    count = 0
    at = dice.expovariate(shape.rate)
    while at < shape.seconds:
        rested = [one for one in open_ones if at - one.last_at >= shape.think_seconds]
        goes_on = dice.random() < shape.continue_ratio
        tenant = _drawn(bounds, dice.random())
        place = dice.random()
        if goes_on and rested:
            talk = rested[int(place * len(rested))]
        else:
            known = shape.system_tokens if tenant in seen else 0
            talk = _Conversation(count, tenant, [Message("system", systems[tenant])], 0, at, known)
            open_ones.append(talk)
            seen.add(tenant)
            count += 1
        question = _text(shape, f"Question {talk.turns} of conversation {talk.id}.", shape.question_tokens)
        talk.messages.append(Message("user", question))
        length = sum(_tokens(shape, message.content) for message in talk.messages)
        turns.append(Turn(at, talk.tenant, talk.id, talk.turns, tuple(talk.messages), length, talk.known_tokens))
        talk.known_tokens = length
        talk.turns += 1
        talk.last_at = at
        talk.messages.append(Message("assistant", _text(shape, "", shape.answer_tokens)))
        if talk.turns == shape.turns:
            open_ones.remove(talk)
        at += dice.expovariate(shape.rate)
    return turns


def best_hit_ratio(turns: list[Turn]) -> float:
    """Known over all prompt tokens: the prefix hits of one server that does everything and forgets nothing."""
    return sum(turn.known_tokens for turn in turns) / max(1, sum(turn.prompt_tokens for turn in turns))


def _drawn(bounds: list[float], dice: float) -> int:
    return next((index for index, bound in enumerate(bounds) if dice < bound), len(bounds) - 1)


def _tokens(shape: Shape, text: str) -> int:
    return round(len(text) / shape.bytes_per_token)


def _text(shape: Shape, beginning: str, tokens: int) -> str:
    """ASCII text of so many tokens that begins so and is the same for the same beginning."""
    size = round(tokens * shape.bytes_per_token)
    words = Random(f"{shape.seed} {beginning}").choices(_WORDS, k=size // 5 + 1)
    return f"{beginning} {' '.join(words)}"[:size]
