"""The transport of a connection that opens when its port has ended already."""

from __future__ import annotations

import asyncio
from typing import Any


class LateTransport(asyncio.Transport):
    """Notes whether it was aborted; nothing may be written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default
