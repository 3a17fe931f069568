"""`log`: the log on standard error."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import OneOf


@dataclass(frozen=True, slots=True)
class LogConfig:
    """The log."""

    format: str = option(OneOf(("text", "json")), "text lines or JSON objects", "text", live=False)
    level: str = option(OneOf(("debug", "info", "warning", "error")), "min level that is logged", "info", live=False)
