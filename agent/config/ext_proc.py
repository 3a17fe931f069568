"""`extProc`: the ports that Envoy's ext_proc filter connects to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent.config.options import option, section
from agent.config.tls import TlsConfig
from agent.config.values import Duration, Number, OneOf, Size

# Envoy's names of the modes in which a body is sent (ProcessingMode.BodySendMode).
BODY_MODES: Final = ("FULL_DUPLEX_STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "STREAMED", "NONE")


@dataclass(frozen=True, slots=True)
class ExtProcConfig:
    """The ext_proc ports of all pools."""

    max_body: int = option(
        Size(1024, 256 << 20),
        "a longer request body, packed or unpacked, is answered with 413",
        16 << 20,
        live=False,
    )
    max_buffered_bytes: int = option(
        Size(1024, 1 << 40),
        "bytes of request bodies that a pool's port buffers; a request beyond is answered with 429",
        1 << 30,
        live=False,
    )
    fallbacks: int = option(
        Number(0, 8, whole=True),
        "endpoints listed after the pick, separated by commas; only for a proxy that reads a list, as Envoy's "
        "`override_host` does: one that reads a single address can send the request nowhere",
        0,
        live=False,
    )
    assumed_mode: str = option(
        OneOf(BODY_MODES),
        "the mode of both bodies of a proxy that names no modes in its first message (`protocol_config`)",
        BODY_MODES[0],
        live=False,
    )
    start_timeout: float = option(
        Duration(0, 600), "time limit of a pool's first scrapes, after which its port opens all the same", 10.0
    )
    drain_timeout: float = option(
        Duration(0, 3600), "time limit for requests whose endpoint is being picked when the agent stops", 30.0
    )
    tls: TlsConfig = section(TlsConfig, "TLS of the ports, for all pools.")
