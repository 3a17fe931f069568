"""`reload`: how changes of the file and of DNS are noticed."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import Duration


@dataclass(frozen=True, slots=True)
class ReloadConfig:
    """Polling of the file and of DNS names; SIGHUP reloads at once."""

    interval: float = option(
        Duration(0.1, 3600), "time between two checks of the file and two look-ups of host names", 2.0
    )
