"""`igw signals`: the signals reported by each engine, as text, Markdown and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.engines import ENGINES, engine, matrix
from agent.engines.table import Engine, SeriesCombination
from agent.signals import HISTOGRAMS, MODELS, SIGNALS

ALL = [engine(name) for name in sorted(ENGINES)]
OWN = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: core-metrics-extractor
  parameters:
    engineConfigs:
    - {name: my-server, queuedRequestsSpec: "my_requests{state=queued}"}
    - {name: vllm, kvUsageSpec: my_cache_usage_ratio}
"""


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["signals", *words]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", [(), *(("--engine", name) for name in sorted(ENGINES))])
def test_what_is_printed_fits_into_a_terminal_of_100_columns(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    assert max(map(len, printed(capsys, *words).splitlines())) <= 100


def test_the_matrix_has_a_line_for_each_signal_and_a_cell_for_each_engine(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys).splitlines()
    assert sum(line.startswith("signal ") for line in lines) == 1, "all engines fit into one block"
    for signal in matrix.rows():
        (line,) = [line for line in lines if line.startswith(f"{signal} ")]
        assert line.split()[1:] == [matrix.cell(table, signal) for table in ALL]


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
def test_a_cell_says_whether_the_engines_table_has_a_source(table: Engine) -> None:
    for signal in SIGNALS:
        probed = signal == MODELS and table.models_path is not None
        assert matrix.cell(table, signal) == ("yes" if signal in table.sources else "path" if probed else "-")
    for signal in HISTOGRAMS:
        assert matrix.cell(table, signal) == ("named" if signal in table.histograms else "-")


@pytest.mark.parametrize("table", ALL, ids=lambda table: table.name)
def test_the_text_of_one_engine_has_every_metric_name_and_every_reason(
    table: Engine, capsys: pytest.CaptureFixture[str]
) -> None:
    text = re.sub(r"\s+", " ", printed(capsys, "--engine", table.name))
    for sources in table.sources.values():
        assert all(sample in text for source in sources for sample in source.samples)
    assert all(family in text for families in table.histograms.values() for family in families)
    reasons = {signal: why for signal in matrix.rows() if (why := table.why_silent(signal))}
    assert all(f"{signal} none: {why}" in text for signal, why in reasons.items())
    assert f"prefixes of its names {', '.join(table.prefixes)} " in text
    assert table.hint in text
    combined = {source.combine for sources in table.sources.values() for source in sources} - {SeriesCombination.SUM}
    assert all(combine.value in text for combine in combined)


def test_the_json_has_the_content_of_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(printed(capsys, "--format", "json"))
    assert list(document["engines"]) == sorted(ENGINES)
    for table in ALL:
        found = document["engines"][table.name]
        assert found["page_path"] == table.page_path
        ports = (found["page_port"], found["health_port"])
        assert ports == ((table.ports.page, table.ports.health) if table.ports else (None, None))
        assert found["prefixes"] == list(table.prefixes)
        assert found["signals"].keys() == SIGNALS.keys()
        for signal, row in found["signals"].items():
            samples = [list(source.samples) for source in table.sources.get(signal, ())]
            assert [source["samples"] for source in row["sources"]] == samples
            assert row["silent"] == (table.why_silent(signal) or None)
            assert (row["availability"] == "yes") == bool(samples)
        families = {signal: tuple(row["families"]) for signal, row in found["histograms"].items() if row["families"]}
        assert families == dict(table.histograms)


def test_engines_of_a_configuration_are_printed_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(OWN)
    found = json.loads(printed(capsys, "--config", str(path), "--format", "json"))["engines"]
    assert list(found) == sorted([*ENGINES, "my-server"])
    assert found["my-server"]["signals"]["waiting_requests"]["availability"] == "yes"
    assert found["vllm"]["signals"]["kv_usage_ratio"]["sources"][0]["samples"] == ["my_cache_usage_ratio"]
    own = printed(capsys, "--config", str(path), "--engine", "my-server")
    assert 'my_requests{state="queued"}' in own
    wide = printed(capsys, "--config", str(path)).splitlines()
    assert max(map(len, wide)) <= 100
    assert sum(line.startswith("signal ") for line in wide) == 2, "the engines need two blocks"


def test_an_unknown_engine_is_wrong_use_and_the_error_suggests_a_similar_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["signals", "--engine", "vlm"]) == 2
    assert capsys.readouterr().err == "igw signals: there is no engine 'vlm'; did you mean 'vllm'?\n"


def test_the_problems_of_a_configuration_are_printed_with_their_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text("kind: Nonsense\n")
    assert main(["signals", "--config", str(path)]) == 1
    assert f"{path}:1: kind: " in capsys.readouterr().err
