"""Faults that an emulated server can have, set while it runs: `POST /emulator/faults` with these fields.

    metrics                  ok | hang | slow | error | empty | html | garbage | cut | nan | huge |
                             renamed | no_stats | comments
    metrics_delay_seconds    delay of a slow page (default 2)
    metrics_status           status of an error page (default 500)
    completions              ok | hang | error | cut | cut_with_error | reset
    completions_status       status of an error answer (default 500)
    completions_ratio        ratio of the requests that get the fault, 0 to 1 (default 1)
    cut_after_tokens         tokens of a stream before it is cut (default 3)
    health                   ok | hang | error
    accelerator              ok | unhealthy | ecc | blank | hang | error
    accelerator_xid          error code of an unhealthy NVIDIA device (default 79)
    foreign_requests         requests of another gateway at the server, running or waiting (default 0)
    foreign_answer_tokens    length of their answers (default 600)
    refuse_seconds           close the port and every connection for this time (once)
    die                      end the process at once, as kill -9 does (once)

Omitted fields keep their value; `DELETE` resets all of them; `GET` returns them.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

_KINDS: Final = {
    "metrics": (
        "ok",
        "hang",
        "slow",
        "error",
        "empty",
        "html",
        "garbage",
        "cut",
        "nan",
        "huge",
        "renamed",
        "no_stats",
        "comments",
    ),
    "completions": ("ok", "hang", "error", "cut", "cut_with_error", "reset"),
    "health": ("ok", "hang", "error"),
    "accelerator": ("ok", "unhealthy", "ecc", "blank", "hang", "error"),
}

MAX_FOREIGN_REQUESTS: Final = 10_000  # each is a task of the server


class InvalidFault(ValueError):
    """A field or value that is not a fault; the message lists the valid ones."""


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults of one server; none by default."""

    metrics: str = "ok"
    metrics_delay_seconds: float = 2.0
    metrics_status: int = 500
    completions: str = "ok"
    completions_status: int = 500
    completions_ratio: float = 1.0
    cut_after_tokens: int = 3
    health: str = "ok"
    accelerator: str = "ok"
    accelerator_xid: int = 79
    foreign_requests: int = 0
    foreign_answer_tokens: int = 600
    refuse_seconds: float = 0.0
    die: bool = False

    def show(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def changed(self, fields: dict[str, Any]) -> Faults:
        """A copy with `fields` set. Raises InvalidFault."""
        known = self.show()
        for name, value in fields.items():
            if name not in known:
                raise InvalidFault(f"{name!r} is not a fault; the faults are {', '.join(known)}")
            kinds = _KINDS.get(name)
            if kinds is not None:
                if value not in kinds:
                    raise InvalidFault(f"{name} must be one of {', '.join(kinds)}, not {value!r}")
            elif name == "die":
                if not isinstance(value, bool):
                    raise InvalidFault(f"die must be true or false, not {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise InvalidFault(f"{name} must be a number of at least 0, not {value!r}")
            elif isinstance(known[name], int) and not isinstance(value, int):
                raise InvalidFault(f"{name} must be a whole number, not {value!r}")
            elif name == "foreign_requests" and value > MAX_FOREIGN_REQUESTS:
                raise InvalidFault(f"foreign_requests must be at most {MAX_FOREIGN_REQUESTS}, not {value!r}")
            elif name.endswith("_status") and not 400 <= value <= 599:
                raise InvalidFault(f"{name} must be an error status, 400 to 599, not {value!r}")
            elif name == "completions_ratio" and value > 1:
                raise InvalidFault(f"completions_ratio must be between 0 and 1, not {value!r}")
        return replace(self, **fields)
