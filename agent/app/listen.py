"""Whether an address can be listened on, as an error message for the operator."""

from __future__ import annotations

import errno
import socket
from typing import Final

from agent.app.component import CannotStart
from agent.config.addresses import split_address

_REASONS: Final = {
    errno.EADDRINUSE: "is in use by another program",
    errno.EADDRNOTAVAIL: "is not an address of this machine",
    errno.EACCES: "needs a privilege that this process does not have",
}


def check_address(address: str, what: str, option: str) -> None:
    """Raises CannotStart where `address` cannot be listened on; port 0 always can."""
    host, port = split_address(address)
    if port == 0:
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind((host, port))
            one.listen()
    except OSError as error:
        why = _REASONS.get(error.errno or 0, f"cannot be listened on ({error.strerror or error})")
        raise CannotStart(f"{what} {address} {why}; choose another with {option}") from error
