"""What may be known of a peer, and why it does not report. Pure."""

from __future__ import annotations

from typing import Final

REPORTING: Final = "reporting"
SILENT: Final = "silent"
REFUSED: Final = "refused"
LEFT: Final = "left"
SELF: Final = "self"
STATES: Final = {
    REPORTING: "its reports arrive",
    SILENT: "no report has arrived within the time for it: what it does is unknown",
    REFUSED: "it is not believed: what it does is unknown",
    LEFT: "it said goodbye and has not come back",
    SELF: "the address is this replica's own",
}
REASONS: Final = {
    "not_reached": "no connection was tried yet",
    "unreachable": "the connection cannot be opened, or was lost",
    "timeout": "it is connected, and sends nothing",
    "version": "it runs a version with another protocol",
    "unauthenticated": "its token or certificate is another one, or it refuses those of this replica",
    "duplicate": "another address leads to the same replica",
    "too_many": "it has as many peers as it accepts",
    "too_large": "a report exceeds the size limit",
    "malformed": "a message cannot be read, or contradicts itself or the ones before",
}
