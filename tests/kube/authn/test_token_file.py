"""A file of bearer tokens in the format of kube-apiserver."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.authn.identity import UserIdentity
from agent.kube.authn.token_file import parse

TOKEN, OTHER = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"


@pytest.mark.parametrize(
    ("line", "identity"),
    [
        (f"{TOKEN},alice", UserIdentity("alice")),
        (f"{TOKEN},alice,7", UserIdentity("alice", uid="7")),
        (f"{TOKEN},alice,7,dev", UserIdentity("alice", ("dev",), "7")),
        (f'{TOKEN},alice,7,"dev, ops"', UserIdentity("alice", ("dev", "ops"), "7")),
        (f'"{TOKEN}", "alice", "7"', UserIdentity("alice", uid="7")),
        (f"{TOKEN},alice,,\r", UserIdentity("alice")),
        (f"\ufeff{TOKEN},alice", UserIdentity("alice")),
    ],
)
def test_a_line_is_a_token_a_user_a_uid_and_groups(line, identity):
    table = parse(line)
    assert table.bad_lines == ()
    assert table.find(TOKEN) == identity
    assert table.find(OTHER) is None


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (OTHER, "no user"),
        (f"{OTHER},", "no user"),
        (f"{OTHER}, ,7", "no user"),
        (f'{OTHER},"alice', "not CSV"),
        (f"{OTHER},alice,7,dev,ops", "5 fields"),
        ("short,alice", "under 16 characters"),
        (",alice", "under 16 characters"),
        (f"{OTHER[:20]} {OTHER[20:]},alice", "no Authorization header can have"),
        (f"{TOKEN},bob", "the token of line 1 again"),
    ],
)
def test_a_bad_line_is_named_by_its_number_without_the_token_and_the_others_count(line, reason):
    table = parse(f"{TOKEN},alice\n\n{line}\n0000000000000000ffff,carol\n")
    ((number, why),) = table.bad_lines
    assert number == 3
    assert reason in why
    assert OTHER[:10] not in why
    assert table.find(TOKEN) == UserIdentity("alice")
    assert table.find("0000000000000000ffff") == UserIdentity("carol")


def test_an_empty_file_has_no_token():
    assert parse("").identities == {}
    assert parse("\n \n").bad_lines == ()


def test_no_token_is_kept_as_text():
    assert TOKEN not in repr(parse(f"{TOKEN},alice"))


TOKENS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=16, max_size=64)
WORDS = st.text(st.characters(codec="utf-8", categories=["L", "N"]), min_size=1, max_size=10)


@given(st.dictionaries(TOKENS, st.tuples(WORDS, WORDS, st.lists(WORDS, max_size=3)), max_size=8))
def test_every_line_that_a_csv_writer_writes_is_read_as_it_was_meant(rows):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for token, (user, uid, groups) in rows.items():
        writer.writerow([token, user, uid, ",".join(groups)])
    table = parse(text.getvalue())
    assert table.bad_lines == ()
    assert {token: table.find(token) for token in rows} == {
        token: UserIdentity(user, tuple(groups), uid) for token, (user, uid, groups) in rows.items()
    }


@given(st.text(max_size=200))
def test_any_text_is_read_and_no_bad_line_is_printed(text):
    table = parse(text)
    assert all(1 <= line.number <= text.count("\n") + 1 for line in table.bad_lines)
    assert len(table.identities) + len(table.bad_lines) <= text.count("\n") + 1
