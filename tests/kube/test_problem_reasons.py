"""Every reason of a problem has its words, and the document has them too."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from agent.kube.problem_reasons import REASONS

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/reference/kubernetes-events.md"


def reported() -> set[str]:
    """The reasons with which the code makes an `ObjectProblem`: words, or names of constants with words."""
    files = [path for folder in ("kube", "discovery", "app") for path in (ROOT / "agent" / folder).glob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    constants: dict[str, str] = {}
    for tree in trees:
        for node in ast.walk(tree):
            target: ast.expr | None = node.target if isinstance(node, ast.AnnAssign) else None
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target = node.targets[0]
            value = node.value if isinstance(node, ast.AnnAssign | ast.Assign) else None
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                constants[target.id] = value.value
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "ObjectProblem":
                reason = node.args[0]
                if isinstance(reason, ast.Constant):
                    found.add(str(reason.value))
                elif isinstance(reason, ast.Name):
                    found.add(constants[reason.id])
    return found


def test_every_reason_that_the_code_reports_has_a_row_and_every_row_is_reported() -> None:
    assert reported() == REASONS.keys()


def test_a_reason_and_an_action_are_words_in_camel_case_that_a_condition_may_have() -> None:
    for reason, row in REASONS.items():
        assert re.fullmatch(r"([A-Z][a-z]+)+", reason)
        assert re.fullmatch(r"([A-Z][a-z]+)+", row.action)
        assert row.meaning[0].islower()
        assert row.remedy[0].islower()


def test_the_document_has_exactly_the_rows_of_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    table = text.partition("| reason | action | it means | what to do |\n|---|---|---|---|\n")[2].partition("\n\n")[0]
    rows = [f"| `{reason}` | `{row.action}` | {row.meaning} | {row.remedy} |" for reason, row in REASONS.items()]
    assert table.splitlines() == rows
