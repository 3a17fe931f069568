"""The token usage in the text of a response, of which the beginning and the end are kept.

The same rules as those of the script for Envoy (`agent.envoy.usage`): a key of an object is followed by a colon, a
whole number and the next part of the object; of several the last one counts. Pure.
"""

from __future__ import annotations

import re
from typing import Final

from agent.events.exchange import NO_USAGE, TokenUsage

# Anthropic's streams report the prompt in their first event. After the usage of a whole response come up to 16 pairs of
# metadata of the client, 8 KiB.
HEAD_BYTES: Final = 4096
TAIL_BYTES: Final = 16384
# The names that APIs have for each number: OpenAI's completions, then its responses and Anthropic's messages.
PROMPT: Final = ("prompt_tokens", "input_tokens")
COMPLETION: Final = ("completion_tokens", "output_tokens")
CACHED: Final = ("cached_tokens", "cache_read_input_tokens")
_PATTERNS: Final = tuple(
    tuple(re.compile(rb'"%s"\s*:\s*(\d{1,15})\s*[,}]' % name.encode()) for name in names)
    for names in (PROMPT, COMPLETION, CACHED)
)


class ResponseText:
    """The beginning and the end of a body whose chunks are added as they pass; `size` is that of all of it."""

    __slots__ = ("_head", "_tail", "_tail_size", "size")

    def __init__(self) -> None:
        self.size = 0
        self._head = b""
        self._tail: list[bytes] = []
        self._tail_size = 0

    def add(self, chunk: bytes) -> None:
        """The next chunk."""
        length = len(chunk)
        self.size += length
        if len(self._head) < HEAD_BYTES:
            self._head += chunk[: HEAD_BYTES - len(self._head)]
        self._tail.append(chunk)
        self._tail_size += length
        if self._tail_size > 2 * TAIL_BYTES:
            kept = b"".join(self._tail)[-TAIL_BYTES:]
            self._tail, self._tail_size = [kept], len(kept)

    def usage(self) -> TokenUsage:
        """The usage that the body reports."""
        return read_usage(self._head, b"".join(self._tail)[-TAIL_BYTES:])


def read_usage(head: bytes, tail: bytes) -> TokenUsage:
    """The usage in the beginning and the end of a body, which may be the same bytes."""
    if b"_tokens" not in head and b"_tokens" not in tail:
        return NO_USAGE
    text = head + b"|" + tail  # a number that is cut at the end of the beginning is followed by neither comma nor brace
    found: list[int | None] = []
    for patterns in _PATTERNS:
        last = None
        for pattern in patterns:
            for match in pattern.finditer(text):
                last = int(match[1])
        found.append(last)
    return TokenUsage(*found)
