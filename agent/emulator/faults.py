"""The faults that an emulated server can be told to have, while it runs: `POST /emulator/faults` with these fields.

    metrics                  ok | hang | slow | error | empty | html | garbage | cut | nan | huge
    metrics_delay_seconds    how much later a slow page comes (default 2)
    metrics_status           the status of an error page (default 500)
    completions              ok | hang | error | cut | cut_with_error | reset
    completions_status       the status of an error answer (default 500)
    completions_ratio        the part of the requests that the fault meets, 0 to 1 (default 1)
    cut_after_tokens         how many tokens of a stream come before it is cut (default 3)
    health                   ok | hang | error
    accelerator              ok | sick | ecc | blank | hang | error
    accelerator_xid          the error code of a sick NVIDIA device (default 79)
    refuse_seconds           close the port and every connection for so long (once)
    die                      end the process now, as kill -9 does (once)

What is left out stays as it is; `DELETE /emulator/faults` makes the server well again; `GET` shows what is set.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

_KINDS: Final = {
    "metrics": ("ok", "hang", "slow", "error", "empty", "html", "garbage", "cut", "nan", "huge"),
    "completions": ("ok", "hang", "error", "cut", "cut_with_error", "reset"),
    "health": ("ok", "hang", "error"),
    "accelerator": ("ok", "sick", "ecc", "blank", "hang", "error"),
}


class BadFaults(ValueError):
    """A fault that the emulator does not have; the text lists those it has."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What is wrong with a server; the default is nothing."""

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
    refuse_seconds: float = 0.0
    die: bool = False

    def show(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)

    def changed(self, fields: dict[str, Any]) -> Faults:
        """These faults with `fields` set; BadFaults says what is wrong and what would be right."""
        known = self.show()
        for name, value in fields.items():
            if name not in known:
                raise BadFaults(f"{name!r} is not a fault; there are {', '.join(known)}")
            kinds = _KINDS.get(name)
            if kinds is not None:
                if value not in kinds:
                    raise BadFaults(f"{name} can be {', '.join(kinds)}, not {value!r}")
            elif name == "die":
                if not isinstance(value, bool):
                    raise BadFaults(f"die is true or false, not {value!r}")
            elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
                raise BadFaults(f"{name} is a number of at least 0, not {value!r}")
            elif isinstance(known[name], int) and not isinstance(value, int):
                raise BadFaults(f"{name} is a whole number, not {value!r}")
            elif name.endswith("_status") and not 400 <= value <= 599:
                raise BadFaults(f"{name} is an error status, 400 to 599, not {value!r}")
            elif name == "completions_ratio" and value > 1:
                raise BadFaults(f"completions_ratio is between 0 and 1, not {value!r}")
        return replace(self, **fields)
