"""The one rule of freshness, and that no other module has a rule of its own."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.state.freshness import NOT_REPORTED, STALE, expiry, is_fresh, why_not_fresh

ROOT = Path(__file__).resolve().parents[2]
THE_RULE = ROOT / "agent" / "state" / "freshness.py"
# These compare a configured limit with other settings, not with a time.
SETTINGS = ROOT / "agent" / "config"

times = st.floats(0, 1e9)
limits = st.floats(0.001, 1e6)


def test_a_reading_is_stale_at_exactly_its_limit() -> None:
    assert is_fresh(10.0, 3.0, 12.999)
    assert not is_fresh(10.0, 3.0, 13.0)


@given(at=times, stale_after=limits, now=times)
@example(at=0.1, stale_after=3.0, now=3.1)  # 3.1 - 0.1 is above 3.0, 0.1 + 3.0 is 3.1
@example(at=0.7, stale_after=0.1, now=0.7999999999999999)  # 0.7999999999999999 - 0.7 is below 0.1, their sum is not
def test_a_reading_is_fresh_exactly_until_its_expiry(at: float, stale_after: float, now: float) -> None:
    expires = expiry(at, stale_after)
    assert is_fresh(at, stale_after, now) is (now < expires)
    assert not is_fresh(at, stale_after, expires)


@given(at=times, stale_after=limits, earlier=times, later=times)
def test_a_stale_reading_stays_stale_and_an_older_one_is_stale_too(
    at: float, stale_after: float, earlier: float, later: float
) -> None:
    earlier, later = sorted((earlier, later))
    assert is_fresh(at, stale_after, earlier) or not is_fresh(at, stale_after, later)
    assert is_fresh(later, stale_after, at) or not is_fresh(earlier, stale_after, at)


@given(at=st.none() | times, stale_after=limits, now=times)
def test_there_is_a_reason_exactly_where_no_fresh_reading_is(at: float | None, stale_after: float, now: float) -> None:
    reason = why_not_fresh(at, stale_after, now)
    if at is None:
        assert reason == NOT_REPORTED
    else:
        assert reason == ("" if is_fresh(at, stale_after, now) else STALE)


def other_rules(source: str) -> Iterator[int]:
    """Lines that compare with a staleness limit, or add or subtract one."""
    for node in ast.walk(ast.parse(source)):
        sums = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub)
        if (sums or isinstance(node, ast.Compare)) and any(
            isinstance(part, ast.Name | ast.Attribute) and _name(part) == "stale_after" for part in ast.walk(node)
        ):
            yield node.lineno  # type: ignore[attr-defined]


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def test_no_other_module_compares_a_time_with_a_staleness_limit() -> None:
    sources = [path for path in (ROOT / "agent").rglob("*.py") if path != THE_RULE and SETTINGS not in path.parents]
    assert len(sources) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}: use agent.state.freshness"
        for path in sources
        for line in other_rules(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source", ["now - at >= stale_after", "at + view.stale_after > now", "until = at + self.stale_after"]
)
def test_another_rule_is_found(source: str) -> None:
    assert list(other_rules(source)) != []


def test_passing_a_limit_on_is_no_rule() -> None:
    assert list(other_rules("f(at, view.stale_after, now)\nx = {'stale_after_seconds': view.stale_after}")) == []
