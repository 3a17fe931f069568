"""The pages that the alert rules link to, as this agent was installed with them.

An alert is read where its words come from: the agent that exports the metrics has the runbooks of its own version.
Where people cannot reach an agent, the same pages may be served elsewhere (`alerts/render.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[3] / "alerts" / "runbooks"  # installed beside this package


@cache
def pages() -> Mapping[str, str]:
    """Name of the file -> its Markdown, in the order of the names. Reads files, once."""
    return {page.name: page.read_text("utf-8") for page in sorted(FOLDER.iterdir())}
