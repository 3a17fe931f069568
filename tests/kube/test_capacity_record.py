"""Learnt capacities are read as they were written, and what makes no sense is left out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.kube.capacity_record import KEY, RecordedCapacity, read, worth_writing, written

capacities = st.dictionaries(
    st.text(max_size=10), st.builds(RecordedCapacity, st.floats(1e-3, 1e5), st.floats(0, 1e10)), max_size=5
)


@given(capacities)
def test_what_is_written_is_read(found):
    assert read(written("igw-capacity", found)) == found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"pools": 3}',
        '{"pools": {"chat": 3}}',
        '{"pools": {"chat": {"requestsPerSecond": -1, "learntAt": 1}}}',
        '{"pools": {"chat": {"requestsPerSecond": 0, "learntAt": 1}}}',
        '{"pools": {"chat": {"requestsPerSecond": NaN, "learntAt": 1}}}',
        '{"pools": {"chat": {"requestsPerSecond": true, "learntAt": 1}}}',
        '{"pools": {"chat": {"requestsPerSecond": "9", "learntAt": 1}}}',
        '{"pools": {"chat": {"requestsPerSecond": 9}}}',
        f'{{"pools": {{"chat": {{"requestsPerSecond": {"9" * 400}, "learntAt": 1}}}}}}',
    ],
)
def test_an_edited_record_is_ignored(text):
    assert read(json.dumps({"data": {KEY: text}}).encode()) == {}


def test_one_bad_pool_leaves_the_others():
    text = '{"pools": {"a": 3, "b": {"requestsPerSecond": 9, "learntAt": 1}}}'
    assert read(json.dumps({"data": {KEY: text}}).encode()) == {"b": RecordedCapacity(9.0, 1.0)}


@given(st.binary(max_size=100))
def test_any_bytes_are_a_record_or_none(body):
    assert isinstance(read(body), dict)


def test_only_a_new_pool_or_a_change_of_five_per_cent_is_worth_a_write():
    before = {"a": RecordedCapacity(10.0, 0.0)}
    assert not worth_writing(before, {})
    assert not worth_writing(before, {"a": RecordedCapacity(10.4, 9.0)})
    assert worth_writing(before, {"a": RecordedCapacity(10.6, 9.0)})
    assert worth_writing(before, {"b": RecordedCapacity(1.0, 9.0)})
