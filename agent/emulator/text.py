"""A substitute for tokenizer and model: text to tokens and back, chat to prompt, prompt to block hashes, answers.

A token is four bytes of UTF-8 (the last one may be shorter). Its id is those bytes as a little-endian number; a short
token is padded with 0xFF, which UTF-8 text never contains. So no vocabulary is needed, and equal text has equal tokens
in `/tokenize`, in usage and in the prefix cache. Ids whose low byte is 0xFF are special: the beginning, the end of a
message, and one for each role.

A chat is `begin`, then for each message its role, its tokens and `end`, then the role `assistant`. Each message is
tokenized on its own and an answer consists of whole tokens. The next turn of a conversation therefore repeats the
tokens of the last one and hits all its full blocks, those of the answer included.

An answer is random words, as from a model with random weights: a section of a fixed ring of words, whose start depends
on the prompt and the seed.
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


def _little_endian(data: bytes) -> array[int]:
    numbers = array("I", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def tokenize(text: str) -> array[int]:
    """The tokens of `text`."""
    data = text.encode("utf-8", "surrogatepass")
    return _little_endian(data + b"\xff" * (-len(data) % BYTES_PER_TOKEN))


def detokenize(tokens: Sequence[int]) -> str:
    """The text of `tokens`, without special tokens; ids wrap at 32 bits, invalid UTF-8 becomes U+FFFD."""
    data = b"".join(
        (token & 0xFFFFFFFF).to_bytes(BYTES_PER_TOKEN, "little").rstrip(b"\xff")
        for token in tokens
        if token & 0xFF != 0xFF
    )
    return data.decode("utf-8", "replace")


def chat_tokens(messages: Sequence[tuple[str, str]]) -> array[int]:
    """The prompt of a chat; `messages` are (role, text)."""
    tokens = array("I", (BEGIN,))
    for role, text in messages:
        tokens.append(_ROLES.get(role, _OTHER_ROLE))
        tokens.extend(tokenize(text))
        tokens.append(END)
    tokens.append(_ROLES["assistant"])
    return tokens


def block_hashes(tokens: array[int], block_size: int, lora: str = "", salt: str = "") -> list[int]:
    """One 64-bit hash for each full block, of all tokens up to its end, the adapter and the salt."""
    data = tokens.tobytes()
    width = block_size * BYTES_PER_TOKEN
    digest = xxhash.xxh3_64_intdigest
    parent = digest(f"{lora}\0{salt}".encode("utf-8", "surrogatepass"))
    hashes = []
    for start in range(0, len(data) - width + 1, width):
        parent = digest(data[start : start + width], parent)
        hashes.append(parent)
    return hashes


class TextGenerator:
    """Generates answers: the same seed, prompt and choice give the same answer."""

    def __init__(self, seed: int) -> None:
        rng = random.Random(seed)
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._seed = seed
        self._ring = "".join(" " + "".join(rng.choice(letters) for _ in range(3)) for _ in range(_RING_TOKENS))
        self._ring += self._ring

    def start(self, prompt: array[int], choice: int) -> int:
        """The token of the ring at which the answer to `prompt` begins."""
        return xxhash.xxh3_64_intdigest(prompt.tobytes(), self._seed + choice) % _RING_TOKENS

    def text(self, start: int, first: int, last: int) -> str:
        """Tokens `first` to `last` (exclusive) of the answer that begins at `start`; ASCII letters and spaces."""
        if last - first > _RING_TOKENS:
            return "".join(self.text(start, i, min(i + _RING_TOKENS, last)) for i in range(first, last, _RING_TOKENS))
        begin = (start + first) % _RING_TOKENS * BYTES_PER_TOKEN
        return self._ring[begin : begin + (last - first) * BYTES_PER_TOKEN]
