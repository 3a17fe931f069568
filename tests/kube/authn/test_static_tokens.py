"""The tokens of a file, which may change at any time."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.kube.authn.identity import CannotCheck, UserIdentity
from agent.kube.authn.static_tokens import StaticTokens, TokenFileUnusable
from agent.kube.authn.token_file import MAX_FILE_BYTES

ALICE, BOB = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"


class Written:
    """A file of tokens, and what is reported about it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reports: list[str] = []
        self.write(f"{ALICE},alice\n")
        self.tokens = StaticTokens(str(path), self.reports.append)

    def write(self, text: str, mode: int = 0o600) -> None:
        """Replace the file, as an editor or a kubelet does."""
        part = self.path.with_suffix(".part")
        part.write_text(text, encoding="utf-8")
        part.chmod(mode)
        part.replace(self.path)


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "tokens.csv")


async def test_a_token_of_the_file_is_its_user(written):
    written.tokens.load()
    assert await written.tokens.identity_of(ALICE) == UserIdentity("alice")
    assert await written.tokens.identity_of(BOB) == "the token is not in the file"
    assert written.reports == []


async def test_a_changed_file_counts_from_the_next_request_on(written):
    written.tokens.load()
    written.write(f"{BOB},bob\n")
    assert await written.tokens.identity_of(BOB) == UserIdentity("bob")
    assert await written.tokens.identity_of(ALICE) == "the token is not in the file"


async def test_a_file_that_is_emptied_admits_nobody(written):
    written.tokens.load()
    written.write("")
    assert await written.tokens.identity_of(ALICE) == "the token is not in the file"


async def test_a_file_that_is_gone_can_be_checked_by_nobody_and_is_reported_once(written):
    written.tokens.load()
    written.path.unlink()
    for _ in range(3):
        with pytest.raises(CannotCheck, match=r"tokens\.csv cannot be read: No such file"):
            await written.tokens.identity_of(ALICE)
    assert len(written.reports) == 1
    written.write(f"{ALICE},alice\n")
    assert await written.tokens.identity_of(ALICE) == UserIdentity("alice")


async def test_a_file_that_others_can_read_is_reported(written):
    written.write(f"{ALICE},alice\n", mode=0o644)
    written.tokens.load()
    assert written.reports == [
        f"every user of this machine can read the tokens in {written.path}; take that right from others"
    ]
    assert await written.tokens.identity_of(ALICE) == UserIdentity("alice")


async def test_a_bad_line_is_reported_by_its_number_without_the_token(written):
    written.write(f"{ALICE},alice\n{BOB}\n")
    written.tokens.load()
    assert written.reports == [f'{written.path}:2 is ignored: no user; write token,user,uid,"group1,group2"']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no token; write a line token,user,uid"),
        (f"{BOB}\n", "has no token; write a line .*; line 1: no user"),
        ("x" * (MAX_FILE_BYTES + 1), "is over 1048576 bytes; is it a file of tokens?"),
    ],
)
def test_a_file_without_a_token_is_refused_at_the_start(written, text, message):
    written.write(text)
    with pytest.raises(TokenFileUnusable, match=message):
        written.tokens.load()


def test_a_file_that_cannot_be_read_is_refused_at_the_start(written):
    written.path.write_bytes(b"\xff\xfe")
    with pytest.raises(TokenFileUnusable, match="they are not UTF-8"):
        written.tokens.load()
    written.path.unlink()
    with pytest.raises(TokenFileUnusable, match="No such file or directory"):
        written.tokens.load()
