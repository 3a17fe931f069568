"""The names that a configuration may use. They are passed in: the configuration imports no engine, filter or scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple


class Vocabulary(NamedTuple):
    """The names of built-in engines, accelerator sources, filters and scorers, and a check of a plugin's parameters:
    `check(type, parameters)` returns None, or the name of a parameter and what is wrong with it."""

    engines: tuple[str, ...]
    accelerators: tuple[str, ...]
    filters: tuple[str, ...]
    scorers: tuple[str, ...]
    check: Callable[[str, Mapping[str, object]], tuple[str, str] | None]
