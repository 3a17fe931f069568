"""What the proxy measures of one request and its response, and the tokens that the response reports."""

from __future__ import annotations

from typing import Final, NamedTuple


class TokenUsage(NamedTuple):
    """The `usage` of an OpenAI response: tokens of the prompt, of the completion, and of the prompt that came from the
    prefix cache. None where the response does not say; that is not 0."""

    prompt: int | None = None
    completion: int | None = None
    cached: int | None = None


NO_USAGE: Final = TokenUsage()


class Slo(NamedTuple):
    """The wanted time to the first token and time per output token of a request, in seconds; None: no objective."""

    ttft: float | None = None
    tpot: float | None = None


NO_SLO: Final = Slo()


class Exchange(NamedTuple):
    """One request and its response at the proxy. Seconds are from the arrival of the request at the proxy, so that the
    time for which it was held is part of them.

    `first_token` is when the first byte of the response's body arrived from the server (None: none did), `last_token`
    when its last byte did; `duration` is until the client has the whole response. `streamed`: the response is a stream
    of events, so that its first byte is the first token; else that byte comes with the whole response.
    """

    duration: float
    first_token: float | None
    last_token: float
    request_bytes: int
    response_bytes: int
    streamed: bool
    usage: TokenUsage = NO_USAGE
