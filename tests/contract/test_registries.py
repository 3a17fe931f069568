"""The registries: every line can be imported, and every file in a registry's folder is in it.

A registry is a table of names and dotted paths, which mypy and ruff cannot check.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.__main__ import COMMANDS
from agent.accelerators import DEVICE_SOURCES, EXPORTERS
from agent.discovery import SOURCES
from agent.engines import ENGINES
from agent.engines.table import Engine
from agent.pick.scorers import SCORERS, scorer
from exporters import EXPORTERS as GAUGE_EXPORTERS


class Registry(NamedTuple):
    """A table, the package whose files it lists, and the other files of that package."""

    package: str
    table: Mapping[str, str]
    beside: frozenset[str] = frozenset()


REGISTRIES = [
    Registry(
        "agent.accelerators",
        dict(sorted({**EXPORTERS, **DEVICE_SOURCES}.items())),
        frozenset({"combine", "device", "faults", "join", "mapping", "device_source", "shares", "table", "xids"}),
    ),
    Registry(
        "agent.engines",
        ENGINES,
        frozenset(
            {
                "auto",
                "cache_resets",
                "custom",
                "histograms",
                "mapping",
                "matrix",
                "reading_plan",
                "recognition",
                "report",
                "spellings",
                "table",
            }
        ),
    ),
    Registry("agent.discovery", SOURCES, frozenset({"endpoints", "pods"})),
    Registry("agent.pick.scorers", SCORERS),
    Registry("exporters", GAUGE_EXPORTERS, frozenset({"exporter", "gauge"})),
]
EVERY_REGISTRY = pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.package)
EVERY_LINE = pytest.mark.parametrize(
    ("name", "place"), [(name, place) for registry in REGISTRIES for name, place in registry.table.items()]
)


def files(package: str) -> set[str]:
    """The names of a package's own modules."""
    (folder,) = importlib.import_module(package).__path__
    return {path.stem for path in Path(folder).glob("*.py")} - {"__init__"}


@pytest.mark.source
@EVERY_LINE
def test_a_line_names_an_object_with_its_name(name: str, place: str) -> None:
    found: Any = pkgutil.resolve_name(place)
    assert found.name == name


@EVERY_REGISTRY
def test_lines_are_in_alphabetical_order(registry: Registry) -> None:
    assert list(registry.table) == sorted(registry.table)


@EVERY_REGISTRY
def test_every_file_in_the_folder_has_a_line(registry: Registry) -> None:
    listed = {place.partition(":")[0].removeprefix(registry.package + ".") for place in registry.table.values()}
    assert files(registry.package) - registry.beside == listed


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_is_a_table(name: str) -> None:
    assert isinstance(pkgutil.resolve_name(ENGINES[name]), Engine)


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_is_made_without_parameters(name: str) -> None:
    assert scorer(name, {}).name == name


@pytest.mark.parametrize("name", COMMANDS)
def test_a_subcommand_has_a_help_text_and_options(name: str) -> None:
    command = importlib.import_module(f"agent.commands.{name}")
    assert command.HELP.strip()
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert callable(command.main)


def test_every_subcommand_has_a_line() -> None:
    modules = {name: importlib.import_module(f"agent.commands.{name}") for name in files("agent.commands")}
    assert {name for name, module in modules.items() if hasattr(module, "add_arguments")} == set(COMMANDS)
