"""The environment of the endpoints: files, certificate authority, accelerator exporter, and their configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.fakes.model_server import SwitchableServer
from tests.scrape.authority import Authority

_RECORDED = Path(__file__).resolve().parents[1] / "recordings" / "accelerators"
DEVICES = (_RECORDED / "dcgm" / "pods.prom").read_bytes()
OTHER_DEVICES = (_RECORDED / "amd" / "pods.prom").read_bytes()
TOKEN = "a-token"
STALE_AFTER = 8.0


class Environment:
    """The environment of one scenario: a folder with files, a certificate authority, an accelerator exporter."""

    def __init__(self, folder: Path, exporter: SwitchableServer) -> None:
        self.folder = folder
        self.exporter = exporter
        self.token = folder / "token"
        self.token.write_text(TOKEN)
        self.authority: Authority | None = None

    @property
    def authorities(self) -> Authority:
        """The certificate authority of the servers."""
        if self.authority is None:
            self.authority = Authority(self.folder)
        return self.authority


Json = dict[str, Any]


class EnvironmentSetup(NamedTuple):
    """The configuration of the pool and of each endpoint by number, and how the servers are prepared.

    `timeout` is that of a scrape: a TLS handshake takes several iterations of the event loop.
    """

    pool: Callable[[Environment], Json]
    endpoint: Callable[[int], Json] = lambda _: {}
    prepare: Callable[[Environment, Sequence[SwitchableServer]], None] = lambda _, __: None
    timeout: str = "100ms"


def _by_tls(environment: Environment, servers: Sequence[SwitchableServer]) -> None:
    pair = environment.authorities.sign("server")
    for server in servers:
        server.tls = environment.authorities.server(pair)


def _with_devices(environment: Environment, servers: Sequence[SwitchableServer]) -> None:
    environment.exporter.page = DEVICES


PLAIN = EnvironmentSetup(lambda _: {})
TLS = EnvironmentSetup(
    lambda environment: {"scrape": {"scheme": "https", "caFile": str(environment.authorities.file)}},
    prepare=_by_tls,
    timeout="500ms",
)
WITH_TOKEN = EnvironmentSetup(lambda environment: {"scrape": {"tokenFile": str(environment.token)}})
WITH_DEVICES = EnvironmentSetup(
    lambda environment: {
        "accelerators": [
            {
                "source": "dcgm",
                "address": environment.exporter.address,
                "interval": "1s",
                "timeout": "100ms",
                "staleAfter": f"{STALE_AFTER:g}s",
            }
        ]
    },
    lambda number: {"pod": f"llm/chat-{number}"},
    _with_devices,
)
