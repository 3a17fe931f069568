"""Every bench has a command, a help text, and an entry in docs/reference/benchmarks.md."""

from __future__ import annotations

import importlib
import re

import pytest

from tests.processes import ROOT

BENCHES = sorted(path.stem for path in (ROOT / "tests" / "bench").glob("bench_*.py"))


def command(bench: str) -> str:
    return bench.replace("_", "-")


@pytest.mark.parametrize("bench", BENCHES)
def test_a_bench_has_a_help_text(bench: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module(f"tests.bench.{bench}").main
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_documentation_lists_exactly_the_benches() -> None:
    text = (ROOT / "docs" / "reference" / "benchmarks.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`make (bench-[a-z-]+)`", text)) == {command(bench) for bench in BENCHES}
