"""The certificates of the agent's ports: which there are, and their replacement while the agent runs."""

from __future__ import annotations

from collections.abc import Sequence

from agent.app.component import CannotStart
from agent.clock import Clock
from agent.config.addresses import split_address
from agent.config.config import Config
from agent.config.tls import TlsConfig
from agent.events import Hook
from agent.serve.tls.files import TlsProblem
from agent.serve.tls.server import ADMIN, KEDA, METRICS_API, PICKER, ServerTls, TlsPort

_ANY_ADDRESS = frozenset({"", "0.0.0.0", "::"})


class Certificates:
    """`pickers` is the TLS of the picker ports of all pools, `admin` and `keda` that of these ports; None for
    plaintext. `metrics_api` is that of the metrics APIs; None where they are not served."""

    def __init__(self, config: Config, clock: Clock, hook: Hook) -> None:
        self._clock = clock
        self._hook = hook
        self.pickers = self._made(config.ext_proc.tls, PICKER, [pool.ext_proc_address for pool in config.pools])
        self.admin = self._made(config.admin.tls, ADMIN, [config.admin.address])
        metrics = config.metrics_api
        own = TlsConfig(cert_file=metrics.cert_file, key_file=metrics.key_file, self_signed=not metrics.cert_file)
        self.metrics_api = self._made(own, METRICS_API, [metrics.address]) if metrics.enabled else None
        keda = config.keda
        self.keda = self._made(keda.tls, KEDA, [keda.address]) if keda.enabled else None

    @property
    def any(self) -> bool:
        """Whether a port has TLS."""
        return any(tls is not None for tls in self._all)

    async def check(self) -> None:
        """Take over certificates that have changed, and renew those of our own."""
        for tls in self._all:
            if tls is not None:
                await tls.check()

    @property
    def _all(self) -> tuple[ServerTls | None, ...]:
        return self.pickers, self.admin, self.metrics_api, self.keda

    def _made(self, config: TlsConfig, port: TlsPort, addresses: Sequence[str]) -> ServerTls | None:
        if not config.enabled:
            return None
        hosts = [host for host in (split_address(address)[0] for address in addresses) if host not in _ANY_ADDRESS]
        return ServerTls(config, port, hook=self._hook, clock=self._clock, hosts=hosts)


def load(tls: ServerTls) -> None:
    """Read a port's certificate before the port opens. Raises CannotStart."""
    try:
        tls.load()
    except TlsProblem as problem:
        raise CannotStart(str(problem)) from problem
