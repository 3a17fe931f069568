"""The page about the metrics APIs has the tables of the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.scaling.served_metrics import SERVED, MetricKind, MetricRow
from agent.serve.metrics_api.status import RESULTS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "reference"
PAGE = (DOCS / "metrics-api.md").read_text(encoding="utf-8").splitlines()
ROWS = [row for rows in SERVED.values() for row in rows.values()]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.kind}-{row.name}")
def test_every_served_metric_is_in_the_document(row: MetricRow) -> None:
    ports = f" {row.over_ports} |" if row.kind is MetricKind.PODS else ""
    line = f"| `{row.name}` | {row.unit} |{ports} {row.meaning} |"
    assert line in PAGE, f"metrics-api.md lacks this line:\n{line}"


def test_the_document_lists_no_other_metric() -> None:
    named = {found[1] for line in PAGE if (found := re.match(r"\| `(igw_\w+|llm_d_\w+)` \|", line))}
    assert named == {row.name for row in ROWS}


@pytest.mark.parametrize("result", RESULTS)
def test_every_result_is_in_the_document(result: str) -> None:
    line = f"| `{result}` | {RESULTS[result]} |"
    assert line in PAGE, f"metrics-api.md lacks this line:\n{line}"


@pytest.mark.parametrize("result", [result for result in RESULTS if result != "ok"])
def test_every_refusal_is_a_row_of_bad_input(result: str) -> None:
    assert f"| `{result}` |" in (DOCS / "bad-input.md").read_text(encoding="utf-8")
