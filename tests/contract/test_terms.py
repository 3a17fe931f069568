"""One term per concept: docs/architecture.md lists the terms, and the words that names in the code must not use."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOPS = ("agent", "exporters", "dashboards", "alerts", "tests")


def terms() -> dict[str, list[str]]:
    """Term -> the words that it replaces, of the table in the document."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("\n## Terms\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    return {term: re.findall(r"`([a-z]+)`", replaced) for term, _, replaced in rows[1:]}


def parts(name: str) -> list[str]:
    """`MAX_bodyBytes` -> max, body, bytes."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a source defines, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if not node.name.startswith("test_"):  # the name of a test is a sentence
                yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr, node.lineno


def coined(path: Path, replaced: dict[str, str]) -> list[str]:
    """The names in a file that use a replaced word, one sentence each."""
    found = [(path.stem, 1), *names(ast.parse(path.read_text(encoding="utf-8")))]
    return [
        f"{path.relative_to(ROOT)}:{line} {name}: `{word}` is called {replaced[word]}"
        for name, line in found
        for word in parts(name)
        if word in replaced
    ]


REPLACED = {word: term for term, words in terms().items() for word in words}


def test_the_document_lists_terms_and_what_they_replace() -> None:
    assert len(terms()) > 25
    assert len(REPLACED) > 25


@pytest.mark.parametrize("top", TOPS)
def test_no_name_uses_a_word_that_a_term_replaces(top: str) -> None:
    found = [sentence for path in sorted((ROOT / top).rglob("*.py")) for sentence in coined(path, REPLACED)]
    assert not found, "\n".join(found)


def test_every_class_has_a_name_of_its_own() -> None:
    """A class of the product is not called like another one; nor does a test call its own like one of the product."""
    where: dict[str, list[str]] = {}
    for top in TOPS:
        for path in sorted((ROOT / top).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    twice = {
        name: paths for name, paths in where.items() if len(paths) > 1 and not all(p[:5] == "tests" for p in paths)
    }
    assert twice == {}


def test_a_coined_name_is_found(tmp_path: Path) -> None:
    source = ast.parse("class Desk:\n    def toldTwice(self, most_bytes): self.anew = 1\n")
    assert {part for name, _ in names(source) for part in parts(name)} >= {"desk", "told", "most", "anew"}
