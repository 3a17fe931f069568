"""Every test makes a claim: it asserts something, or calls a function that does."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
RAISES = {"pytest.raises", "pytest.warns"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.Module) -> Iterator[Function]:
    """Every function and method, nested ones included."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def asserts(function: Function) -> bool:
    """Whether the function itself asserts something. Waiting for a condition is not an assertion."""
    return any(
        isinstance(node, ast.Assert) or (isinstance(node, ast.Call) and ast.unparse(node.func) in RAISES)
        for node in ast.walk(function)
    )


def calls(function: Function) -> set[str]:
    """The last parts of the names of all called functions."""
    called = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    return {ast.unparse(name).rpartition(".")[2] for name in called}


def without_a_claim(trees: dict[Path, ast.Module]) -> list[str]:
    """`file:line name` of the tests that assert nothing, nor call a function of these modules that does."""
    checks = {each.name for tree in trees.values() for each in functions(tree) if asserts(each)}
    return [
        f"{path}:{test.lineno} {test.name}"
        for path, tree in trees.items()
        for test in functions(tree)
        if test.name.startswith("test_") and not asserts(test) and not calls(test) & checks
    ]


def test_every_test_claims_something() -> None:
    found = without_a_claim({path: ast.parse(path.read_text(encoding="utf-8")) for path in TESTS.rglob("*.py")})
    assert found == [], "assert the claim of the test's name; waiting for it is not enough"


@pytest.mark.parametrize(
    ("body", "claims"),
    [
        ("assert f() == 1", True),
        ("with pytest.raises(ValueError): f()", True),
        ("check(f())", True),
        ("rig.check(f())", True),
        ("await eventually(lambda: f() == 1)", False),
        ("f()", False),
    ],
)
def test_a_test_without_a_claim_is_found(body: str, claims: bool) -> None:
    text = f"def check(value):\n assert value\nasync def test_it():\n {body}"
    assert (without_a_claim({Path("it.py"): ast.parse(text)}) == []) is claims
