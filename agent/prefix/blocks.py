"""A prompt as a chain of block hashes: each hash stands for its block and for everything before it.

A server's prefix cache shares whole blocks, and a block only together with all blocks before it. So two prompts share
as many leading hashes here as they have leading blocks in common, and one look-up per block tells where a prompt is
warm. The seed keeps apart what must never share a cache: another model, another salt.
"""

from __future__ import annotations

import xxhash


def seed(model: str, salt: bytes) -> bytes:
    """The seed of a chain: the model and the salt, each with its length, so that no two pairs make the same bytes.

    A model's name comes from a client and may hold anything that JSON can say, a lone surrogate included.
    """
    name = model.encode("utf-8", "surrogatepass")
    return b"%d:%b%d:%b" % (len(name), name, len(salt), salt)


def chain(text: bytes, block_bytes: int, seed: bytes, limit: int) -> list[int]:
    """One 64-bit hash per whole block of `block_bytes` bytes, at most `limit` of them; a last part block has none.

    XXH3-64 over the seed and the text so far, read off after each block: a running hash costs one pass over the text.
    ValueError for a block of less than one byte.
    """
    if block_bytes < 1:
        raise ValueError(f"block_bytes is {block_bytes}; a block has at least one byte")
    running = xxhash.xxh3_64(seed)
    update, read = running.update, running.intdigest
    hashes: list[int] = []
    for end in range(block_bytes, min(len(text), limit * block_bytes) + 1, block_bytes):
        update(text[end - block_bytes : end])
        hashes.append(read())
    return hashes
