"""A prompt as a chain of block hashes: each hash covers its block and everything before it.

A server's prefix cache shares whole blocks, and a block only together with all blocks before it. Two prompts share as
many leading hashes as they have leading blocks in common, so one look-up per block finds the endpoints that hold a
prompt's beginning. The seed separates what must not share a cache: another model, another salt.
"""

from __future__ import annotations

import xxhash


def seed(model: str, salt: bytes) -> bytes:
    """The seed of a chain: the model and the salt, each with its length, so that no two pairs give the same bytes.

    A model's name comes from a client and may contain any JSON string, lone surrogates included.
    """
    name = model.encode("utf-8", "surrogatepass")
    return b"%d:%b%d:%b" % (len(name), name, len(salt), salt)


def chain(text: bytes, block_bytes: int, seed: bytes, limit: int) -> list[int]:
    """One 64-bit hash per whole block of `block_bytes` bytes, at most `limit` of them; a partial last block has none.

    XXH3-64 over the seed and the text up to the end of the block: a running hash costs one pass over the text.
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
