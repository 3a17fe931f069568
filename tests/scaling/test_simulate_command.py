"""`igw simulate` prints the same for the same trace, and refuses a broken one with the number of the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.__main__ import main
from tests.processes import ROOT

DEMAND = (ROOT / "docs" / "concepts" / "demand.md").read_text(encoding="utf-8")


def trace(folder: Path, text: str = "t_s,rps\n0,40\n1200,80\n2400,40\n") -> str:
    path = folder / "rates.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_table_has_every_signal_and_is_the_same_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", trace(tmp_path), "--capacity", "10", "--noise", "poisson"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    rows = [line[:15].strip() for line in first.splitlines()[4:]]
    assert rows == ["queue 5", "KV 0.8", "running/batch", "demand", "look-ahead"]
    assert "static peak: 8 replicas" in first


def test_a_constant_rate_has_the_row_that_is_computed_by_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """32 requests/s at a target of 0.8 are four replicas of 10 for an hour; the peak needs as many."""
    path = trace(tmp_path, "t_s,rps\n0,32\n3600,32\n")
    assert main(["simulate", path, "--capacity", "10", "--target", "0.8"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("demand"))
    assert row.split() == ["demand", "4-4", "4.0", "1.000", "0.000", "0", "0", "0.0"]


def test_an_slo_names_the_cheapest_target_that_holds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", trace(tmp_path), "--capacity", "2", "--slo", "0.5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    held = [line for line in lines if line.endswith("cheapest")]
    assert len(held) == 1
    assert lines[-1].startswith(f"target {float(held[0].split()[0]):g} holds it")


def test_an_slo_that_no_target_holds_is_answered_with_the_static_peak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trace(tmp_path, "t_s,rps\n0,1\n600,1\n615,500\n1200,500\n")
    assert main(["simulate", path, "--capacity", "1", "--slo", "0"]) == 0
    assert "no target holds it: keep 500 replicas" in capsys.readouterr().out


def test_the_picture_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "replicas.svg"
    assert main(["simulate", trace(tmp_path), "--capacity", "10", "--svg", str(picture)]) == 0
    assert picture.read_text(encoding="utf-8").startswith("<svg")
    assert capsys.readouterr().err == ""


def test_a_negative_rate_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = trace(tmp_path, "t_s,rps\n0,40\n60,-3\n120,40\n")
    assert main(["simulate", path, "--capacity", "10"]) == 1
    assert capsys.readouterr().err == (
        f"igw simulate: {path}: line 3: rps is -3; a rate is 0 or more requests per second\n"
    )


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "/nowhere/rates.csv", "--capacity", "10"]) == 1
    assert capsys.readouterr().err == "igw simulate: /nowhere/rates.csv: No such file or directory\n"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--target", "0", "not a part of a replica"),
        ("--target", "nan", "not a part of a replica"),
        ("--capacity", "0", "not above 0"),
        ("--capacity", "many", "invalid number value: 'many'"),
        ("--startup", "-1", "below 0"),
        ("--noise", "loud", "invalid noise value: 'loud'"),
    ],
)
def test_an_option_out_of_range_is_a_usage_error(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["simulate", trace(tmp_path), "--capacity", "10", f"{option}={value}"])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--tolerance", "0.1"], ["--min-replicas", "9", "--max-replicas", "3"]])
def test_options_that_do_not_fit_together_are_a_usage_error(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", trace(tmp_path), "--capacity", "10", *options]) == 2
    assert capsys.readouterr().err.startswith("igw simulate: --")


def test_every_column_of_the_table_is_documented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", trace(tmp_path), "--capacity", "10"])
    header = capsys.readouterr().out.splitlines()[3]
    for name in ("replicas", "pod-hours", "of static", "overflow %", "changes", "flaps", "longest wait s"):
        assert name in header
        assert any(name in line.split("|")[1] for line in DEMAND.splitlines() if line.startswith("| "))
