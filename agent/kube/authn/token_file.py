"""A file of bearer tokens, in the format of kube-apiserver's --token-auth-file. Pure.

Each line is `token,user,uid,"group1,group2"` in CSV; the uid and the groups may be left out. Tokens are kept as SHA-256
hashes, and compared by looking up the hash: the time of that says nothing about how much of a token was right.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from typing import Final, NamedTuple

from agent.kube.authn.identity import TOKEN, UserIdentity

MAX_FILE_BYTES: Final = 1 << 20
MIN_TOKEN_LENGTH: Final = 16  # 64 bits in hexadecimal: fewer can be guessed over the network


class RefusedLine(NamedTuple):
    """A line that is ignored: its number, and what is wrong with it, without its contents."""

    number: int
    reason: str


class TokenTable(NamedTuple):
    """The identities of a file by the hash of their token, and the lines that are ignored."""

    identities: Mapping[bytes, UserIdentity]
    bad_lines: tuple[RefusedLine, ...] = ()

    def find(self, token: str) -> UserIdentity | None:
        """The identity of a token."""
        return self.identities.get(token_hash(token))


def token_hash(token: str) -> bytes:
    """What stands for a token wherever it is kept."""
    return hashlib.sha256(token.encode()).digest()


def parse(text: str) -> TokenTable:
    """The tokens of a file; a line that is wrong does not affect the others."""
    identities: dict[bytes, UserIdentity] = {}
    lines: dict[bytes, int] = {}
    bad: list[RefusedLine] = []
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if not line.strip():
            continue
        found = _read(line)
        if isinstance(found, str):
            bad.append(RefusedLine(number, found))
            continue
        token, identity = found
        key = token_hash(token)
        if key in identities:
            bad.append(RefusedLine(number, f"the token of line {lines[key]} again; keep one"))
            continue
        identities[key], lines[key] = identity, number
    return TokenTable(identities, tuple(bad))


def _read(line: str) -> tuple[str, UserIdentity] | str:
    """A line, or what is wrong with it."""
    try:
        (fields,) = csv.reader([line], strict=True, skipinitialspace=True)
    except (csv.Error, ValueError):
        return 'not CSV; write token,user,uid,"group1,group2"'
    if len(fields) < 2:
        return 'no user; write token,user,uid,"group1,group2"'
    if len(fields) > 4:
        return f"{len(fields)} fields where there are at most 4; write the groups as one field in quotes"
    token, user, uid, groups = (field.strip() for field in (*fields, "", "")[:4])
    if not all("!" <= character <= "~" for character in token):
        return "the token has characters that no Authorization header can have; write ASCII without blanks"
    if len(token) < MIN_TOKEN_LENGTH:
        return (
            f"the token has under {MIN_TOKEN_LENGTH} characters; write a longer one, as `openssl rand -hex 16` prints"
        )
    if not user:
        return 'no user; write token,user,uid,"group1,group2"'
    names = tuple(name for group in groups.split(",") if (name := group.strip()))
    return token, UserIdentity(user, names, uid, method=TOKEN)
