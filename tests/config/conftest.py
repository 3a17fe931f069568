"""Every configuration that a test of this folder reads must be valid by the JSON Schema too."""

from __future__ import annotations

from typing import Any

import pytest

import agent.config
from agent.config.nodes import MappingNode, plain
from tests.config.validation import schema_problems

_interpret = agent.config._interpret


def _checked(document: MappingNode, *arguments: Any) -> Any:
    config = _interpret(document, *arguments)  # raises for a configuration that is refused
    assert schema_problems(plain(document)) == []
    return config


@pytest.fixture(scope="session", autouse=True)
def _schema_accepts_what_the_reader_accepts() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent.config, "_interpret", _checked)
        yield
