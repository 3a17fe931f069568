"""What stands around the endpoints of a story, and what the agent's file says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.scrape.authority import Authority
from tests.scrape.model_server import Target

_RECORDED = Path(__file__).resolve().parents[1] / "recordings" / "accelerators"
DEVICES = (_RECORDED / "dcgm" / "pods.prom").read_bytes()
OTHER_DEVICES = (_RECORDED / "amd" / "pods.prom").read_bytes()
TOKEN = "a-token"
STALE_AFTER = 8.0


class Around:
    """A story's own: a folder with files, an authority if the servers are reached by TLS, an exporter of devices."""

    def __init__(self, folder: Path, exporter: Target) -> None:
        self.folder = folder
        self.exporter = exporter
        self.token = folder / "token"
        self.token.write_text(TOKEN)
        self.authority: Authority | None = None

    @property
    def authorities(self) -> Authority:
        """Who vouches for the servers."""
        if self.authority is None:
            self.authority = Authority(self.folder)
        return self.authority


Json = dict[str, Any]


class Scene(NamedTuple):
    """`pool`: what the file says of the pool; `endpoint`: of the endpoint of this number; `set`: how the servers are.
    `timeout` is that of a scrape: an answer by TLS takes some turns of the event loop."""

    pool: Callable[[Around], Json]
    endpoint: Callable[[int], Json] = lambda _: {}
    set: Callable[[Around, Sequence[Target]], None] = lambda _, __: None
    timeout: str = "100ms"


def _by_tls(around: Around, servers: Sequence[Target]) -> None:
    pair = around.authorities.sign("server")
    for server in servers:
        server.tls = around.authorities.server(pair)


def _with_devices(around: Around, servers: Sequence[Target]) -> None:
    around.exporter.page = DEVICES


PLAIN = Scene(lambda _: {})
TLS = Scene(
    lambda around: {"scrape": {"scheme": "https", "caFile": str(around.authorities.file)}}, set=_by_tls, timeout="500ms"
)
WITH_TOKEN = Scene(lambda around: {"scrape": {"tokenFile": str(around.token)}})
WITH_DEVICES = Scene(
    lambda around: {
        "accelerators": [
            {
                "source": "dcgm",
                "address": around.exporter.address,
                "interval": "1s",
                "timeout": "100ms",
                "staleAfter": f"{STALE_AFTER:g}s",
            }
        ]
    },
    lambda number: {"pod": f"llm/chat-{number}"},
    _with_devices,
)
