"""`extProc`: the ports that Envoy's ext_proc filter connects to."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.options import option
from agent.config.values import Duration, Number, Size


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
        "endpoints listed after the pick, for a proxy that retries along the list",
        0,
        live=False,
    )
    drain_timeout: float = option(
        Duration(0, 3600), "time limit for requests whose endpoint is being picked when the agent stops", 30.0
    )
