"""A stand-in for a tokenizer and for a model: text to tokens and back, chat to a prompt, prompt to blocks, answers.

A token is four bytes of UTF-8 (the last one may be shorter), its id those bytes as a little-endian number, short tokens
filled up with 0xFF, which no UTF-8 text holds. So text and tokens are the same thing, no table is needed, and equal
text has equal tokens everywhere: in `/tokenize`, in usage and in the prefix cache. Ids whose low byte is 0xFF are
special: the beginning, the end of a message, and one for each role.

A chat is `begin`, then for each message its role, its tokens and `end`, then the role `assistant`. Each message is cut
into tokens on its own, and an answer is made of whole tokens, so the next turn of a conversation repeats the tokens of
the last one and finds all its full blocks, answer included.

The answer is noise as from random weights: words of a ring, from a place that depends on the prompt and the seed.
"""

from __future__ import annotations

import random
import sys
from array import array
from collections.abc import Sequence
from typing import Final

import xxhash

BYTES_PER_TOKEN: Final = 4
BEGIN: Final = 0x00FFFFFF
END: Final = 0x01FFFFFF
_ROLES: Final = {"system": 0x02FFFFFF, "user": 0x03FFFFFF, "assistant": 0x04FFFFFF, "tool": 0x05FFFFFF}
_OTHER_ROLE: Final = 0x06FFFFFF
_RING_TOKENS: Final = 8192


def _words(data: bytes) -> array[int]:
    words = array("I", data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def tokenize(text: str) -> array[int]:
    """The tokens of `text`."""
    data = text.encode("utf-8", "surrogatepass")
    return _words(data + b"\xff" * (-len(data) % BYTES_PER_TOKEN))


def detokenize(tokens: Sequence[int]) -> str:
    """The text of `tokens`; special ones are nothing, ids above 32 bits wrap, bytes that are no UTF-8 become U+FFFD."""
    data = b"".join(
        (token & 0xFFFFFFFF).to_bytes(BYTES_PER_TOKEN, "little").rstrip(b"\xff")
        for token in tokens
        if token & 0xFF != 0xFF
    )
    return data.decode("utf-8", "replace")


def chat_tokens(messages: Sequence[tuple[str, str]]) -> array[int]:
    """The prompt that a chat makes: `messages` are (role, text)."""
    tokens = array("I", (BEGIN,))
    for role, text in messages:
        tokens.append(_ROLES.get(role, _OTHER_ROLE))
        tokens.extend(tokenize(text))
        tokens.append(END)
    tokens.append(_ROLES["assistant"])
    return tokens


def block_hashes(tokens: array[int], block_size: int, lora: str = "", salt: str = "") -> list[int]:
    """One 64-bit hash for each full block, covering all tokens up to its end, the adapter and the salt."""
    data = tokens.tobytes()
    width = block_size * BYTES_PER_TOKEN
    digest = xxhash.xxh3_64_intdigest
    parent = digest(f"{lora}\0{salt}".encode("utf-8", "surrogatepass"))
    hashes = []
    for start in range(0, len(data) - width + 1, width):
        parent = digest(data[start : start + width], parent)
        hashes.append(parent)
    return hashes


class Voice:
    """What a server says: the same seed, prompt and choice give the same answer."""

    def __init__(self, seed: int) -> None:
        dice = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._seed = seed
        self._ring = "".join(" " + "".join(dice.choice(letters) for _ in range(3)) for _ in range(_RING_TOKENS))
        self._ring += self._ring

    def start(self, prompt: array[int], choice: int) -> int:
        """Where in the ring the answer to `prompt` begins."""
        return xxhash.xxh3_64_intdigest(prompt.tobytes(), self._seed + choice) % _RING_TOKENS

    def text(self, start: int, first: int, last: int) -> str:
        """Tokens `first` to `last` (not included) of the answer that begins at `start`; ASCII letters and spaces."""
        if last - first > _RING_TOKENS:
            return "".join(self.text(start, i, min(i + _RING_TOKENS, last)) for i in range(first, last, _RING_TOKENS))
        begin = (start + first) % _RING_TOKENS * BYTES_PER_TOKEN
        return self._ring[begin : begin + (last - first) * BYTES_PER_TOKEN]
