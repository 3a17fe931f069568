"""The configuration in a file."""

from __future__ import annotations

from pathlib import Path

from agent.config import parse
from agent.config.config import Config
from agent.config.document import MAX_BYTES
from agent.config.nodes import BadConfig, Problem
from agent.config.vocabulary import Vocabulary


def load(path: str | Path, vocabulary: Vocabulary | None = None) -> Config:
    """The configuration in a file. Raises `BadConfig` with every problem, also when the file cannot be read."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadConfig(str(path), [Problem(0, "", f"cannot be read: {error.strerror or error}")]) from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if len(data) <= MAX_BYTES or error.start < MAX_BYTES - 4:
            line = data.count(b"\n", 0, error.start) + 1
            raise BadConfig(str(path), [Problem(line, "", "not UTF-8; save the file as UTF-8")]) from error
        text = " " * len(data)  # a character cut at the limit: `parse` refuses the length
    return parse(text, str(path), vocabulary)
