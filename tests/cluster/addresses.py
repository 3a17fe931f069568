"""Addresses for the pods of a test run: a block of 127.0.0.0/8 that no other run on this machine uses.

Linux answers on every address of 127.0.0.0/8, so that each pod can have one to listen on.
"""

from __future__ import annotations

import itertools
import socket
from typing import Final

_RESERVATION_PORT: Final = 17999  # any port that nothing else listens on: all runs must use the same one


class NoAddresses(Exception):
    """Every block is in use."""


class PodAddresses:
    """The addresses of the block 127.B.0.0/16. A socket reserves it, and the kernel releases it with the process."""

    def __init__(self) -> None:
        for block in range(10, 250):
            self._reservation = socket.socket()
            try:
                self._reservation.bind((f"127.{block}.255.254", _RESERVATION_PORT))
            except OSError:
                self._reservation.close()
                continue
            self._block = block
            self._numbers = itertools.count(1)
            return
        raise NoAddresses("other test runs have reserved all blocks of 127.0.0.0/8")

    def next(self) -> str:
        """An address that no pod of this run has had. NoAddresses after 65,000 of them."""
        number = next(self._numbers)
        if number > 0xFF00:
            raise NoAddresses("this run has used its block of addresses")
        return f"127.{self._block}.{number >> 8}.{number & 0xFF}"

    def close(self) -> None:
        """Release the block."""
        self._reservation.close()
