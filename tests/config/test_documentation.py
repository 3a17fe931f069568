"""docs/reference/configuration.md lists exactly the options, plugins and flags of the program."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from agent.app.vocabulary import VOCABULARY
from agent.commands import check, run
from agent.config import parse
from agent.config.config import Config
from agent.config.epp.names import BUILT_IN, NOT_SUPPORTED
from agent.config.file import load
from agent.config.options import all_options

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "reference" / "configuration.md").read_text(encoding="utf-8")


def rows(heading: str, first: str) -> list[str]:
    """The rows of the table under a heading whose first column is `first`."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\|.*\|$", section[section.index(f"| {first} |") :].split("\n\n")[0], re.MULTILINE)


def test_the_table_of_options_is_the_one_that_the_program_prints() -> None:
    assert rows("Options", "option") == check.table().splitlines(), "paste `igw check --options` into the page"


def test_every_option_has_a_meaning_and_a_default() -> None:
    for _, option in all_options(Config):
        assert option.meaning
        assert option.default_in_words()
        assert not option.meaning.endswith(".")


def test_the_table_of_plugins_holds_every_filter_and_scorer() -> None:
    documented = [tuple(re.findall(r"[^|]+", row)[:2]) for row in rows("Profiles", "plugin")[2:]]
    assert [(name.strip(" `"), kind.strip()) for name, kind in documented] == [
        *((name, "filter") for name in VOCABULARY.filters),
        *((name, "scorer") for name in VOCABULARY.scorers),
    ]


def test_the_parameters_of_the_table_are_taken_with_the_defaults_shown() -> None:
    for row in rows("Profiles", "plugin")[2:]:
        name, _, parameters = (cell.strip() for cell in row.strip("|").split("|"))
        for parameter, default in re.findall(r"`(\w+)` \(([\d.]+)\)", parameters):
            assert VOCABULARY.check(name.strip("`"), {parameter: float(default)}) is None
        assert VOCABULARY.check(name.strip("`"), {"nonsense": 1.0}) is not None


def test_every_plugin_type_is_listed_where_it_belongs() -> None:
    def listed(after: str) -> list[str]:
        return re.findall(r"`([^`]+)`", TEXT.split(after)[1].split(".\n")[0])

    assert listed("the agent has their functions built in: ") == list(BUILT_IN)
    assert listed("are not supported yet: ") == list(NOT_SUPPORTED)


def test_the_table_of_flags_is_what_the_command_takes() -> None:
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    table = dict(re.findall(r"\| `(--[\w-]+)` \| `([^`]+)`", "\n".join(rows("Without a file", "flag"))))
    assert set(table) == flags - {"--help", "--config"}
    known = {path for path, _ in all_options(Config)} | {"pools[].endpoints"}
    assert set(table.values()) <= known


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/examples").glob("*.yaml")), ids=lambda path: path.name)
def test_an_example_file_is_valid(path: Path) -> None:
    assert isinstance(load(path, VOCABULARY), Config)


def test_the_examples_in_the_text_are_valid() -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len(examples) >= 2
    for example in examples:
        assert parse(example, "docs/reference/configuration.md", VOCABULARY).notes == ()


def test_the_full_example_holds_every_option() -> None:
    text = (ROOT / "deploy/examples/full.yaml").read_text(encoding="utf-8")
    written = set(re.findall(r"^[ #-]*(\w+):", text, re.MULTILINE))
    assert {re.split(r"[.\]]", path)[-1] for path, _ in all_options(Config)} <= written
