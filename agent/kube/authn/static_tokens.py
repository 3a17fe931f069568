"""Tokens of a file, read again when it changes: a token that is removed from it is refused from the next request on."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

from agent.kube.authn.identity import CannotCheck, UserIdentity
from agent.kube.authn.token_file import MAX_FILE_BYTES, TokenTable, parse

_Fingerprint = tuple[int, int, int]


class TokenFileUnusable(Exception):
    """The file cannot be read or has no token; the message names it and says what to write."""


class StaticTokens:
    """The tokens of a file. While it cannot be read, no token can be checked. `report` is called with each sentence
    about what is wrong with the file, when it is read."""

    def __init__(self, path: str, report: Callable[[str], None]) -> None:
        self._path = Path(path)
        self._report = report
        self._table = TokenTable({})
        self._unreadable = ""
        self._seen: _Fingerprint | None = None

    def load(self) -> None:
        """Read the file for the first time. Raises TokenFileUnusable, also where it has no token."""
        self._read()
        if self._unreadable:
            raise TokenFileUnusable(self._unreadable)
        if not self._table.identities:
            bad = "".join(f"; line {line.number}: {line.reason}" for line in self._table.bad_lines[:3])
            raise TokenFileUnusable(f'{self._path} has no token; write a line token,user,uid,"group1,group2"{bad}')

    async def identity_of(self, token: str) -> UserIdentity | str:
        """The identity of a token, or why it has none. Raises CannotCheck."""
        if self._fingerprint() != self._seen:
            self._read()
        if self._unreadable:
            raise CannotCheck(self._unreadable)
        return self._table.find(token) or "the token is not in the file"

    def _read(self) -> None:
        self._seen = self._fingerprint()  # before the file is read: a change while it is read is noticed later
        self._unreadable, text, mode = "", "", 0
        try:
            status = self._path.stat()
            mode = status.st_mode
            if status.st_size > MAX_FILE_BYTES:
                self._unreadable = f"{self._path} is over {MAX_FILE_BYTES} bytes; is it a file of tokens?"
            else:
                text = self._path.read_text(encoding="utf-8")
        except OSError as error:
            self._unreadable = f"the tokens in {self._path} cannot be read: {error.strerror or error}"
        except UnicodeDecodeError:
            self._unreadable = f"the tokens in {self._path} cannot be read: they are not UTF-8"
        self._table = parse(text)
        if self._unreadable:
            self._report(self._unreadable)
            return
        if mode & stat.S_IROTH:
            self._report(f"every user of this machine can read the tokens in {self._path}; take that right from others")
        for line in self._table.bad_lines:
            self._report(f"{self._path}:{line.number} is ignored: {line.reason}")

    def _fingerprint(self) -> _Fingerprint | None:
        """None where there is no such file. One call of the operating system."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
