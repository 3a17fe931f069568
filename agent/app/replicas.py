"""The replicas of the agent as a component: the port for the peers, where they are, and what they report."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from agent.app.certificates import load
from agent.app.component import CannotStart
from agent.app.listen import check_address
from agent.app.software import software
from agent.app.tasks import Task, Tasks
from agent.clock import Clock
from agent.config.addresses import join_address, split_address
from agent.config.config import Config
from agent.config.replicas import ReplicasConfig
from agent.config.tls import TlsConfig
from agent.discovery.static import RESOLVE_TIMEOUT_SECONDS, look_up
from agent.events import Event, Hook
from agent.events.replicas import PeerChanged, PeerRefused, PeersCounted
from agent.replicas.client import PeerAccess
from agent.replicas.peer_part import PoolTarget, block_format
from agent.replicas.peers import Peers
from agent.replicas.service import OwnIdentity, PoolKnowledge, ReplicaService
from agent.requests.sharing import NOT_SHARED, Sharing
from agent.scaling.demand_history import DemandHistory
from agent.scaling.envelope import Envelope
from agent.scaling.served_metrics import ServedValue, WithheldMetric
from agent.serve.grpc.listener import GrpcListener
from agent.serve.grpc.router import GrpcRouter
from agent.serve.tls.server import REPLICAS, ServerTls
from agent.state.replicas import ReplicasView

# A peer that has begun to listen here is followed within this time, or its part is unknown.
_MUTUAL_SECONDS: Final = 2.0
_MAX_TOKEN_BYTES: Final = 4096


class Replicas:
    """Serves this replica's reports and follows those of its peers. Without `replicas.address` it does nothing.

    `on_share`, where it is set, is called with `share` after each change of a peer's state."""

    name = "replicas"

    def __init__(self, config: Config, clock: Clock, tasks: Tasks, hook: Hook) -> None:
        self._config = config
        self._settings: ReplicasConfig = config.replicas
        self._tasks = tasks
        self._clock = clock
        self._hook = hook
        self.address = ""
        self._targets: dict[str, PoolTarget] = {}
        self._token = b""
        self._resolving: Task | None = None
        self._resolve_now = asyncio.Event()
        self._unresolved = ""
        settings = self._settings
        self._identity = OwnIdentity(secrets.token_hex(16), settings.name or socket.gethostname()[:63], software())
        self._service = ReplicaService(self._identity, self._read_token, clock.now, hook, self._peer_began)
        self._tls = _server_tls(settings, clock, hook)
        router = GrpcRouter((self._service,), self._handler_failed)
        self._listener = GrpcListener(router, self._connection_failed, self._tls)
        transport = PeerAccess(settings.ca_file, settings.cert_file, settings.key_file, settings.server_name)
        self._peers = Peers(
            self._identity, transport, self._read_token, self._targets.get, settings.stale_after, clock, self._observe
        )
        self._listening = False
        self.on_share: Callable[[float], None] | None = None

    # -- what pools use ----------------------------------------------------------------------------------------------

    def sharing(self, pool: str, knowledge: PoolKnowledge) -> Sharing:
        """What takes the events of a new pool; `knowledge` returns what it has learnt."""
        if not self._settings.enabled:
            return NOT_SHARED
        return self._service.publishers.add(pool, block_format(self._config.prefix_index), knowledge)

    def set_pools(self, targets: Mapping[str, PoolTarget]) -> None:
        """Replace the pools that reports of peers apply to."""
        self._targets.clear()
        self._targets.update(targets)
        self._service.publishers.keep(targets)

    @property
    def share(self) -> float:
        """The part of the free slots of an endpoint that this replica may use: each of n replicas that do not know of
        each other's requests uses 1/n. The requests of a peer that reports are known."""
        return 1 / (1 + len(self._peers.unknown()))

    # -- what readers use --------------------------------------------------------------------------------------------

    def view(self) -> ReplicasView | None:
        """What this replica is, and its peers; None where the configuration has none."""
        if not self._settings.enabled:
            return None
        identity, peers = self._identity, tuple(self._peers.views())
        return ReplicasView(identity.instance, identity.name, self.address, peers, tuple(self.unknown()))

    def unknown(self) -> list[str]:
        """The peers whose part of a sum over replicas is unknown, one phrase each; empty where it is complete."""
        if not self._settings.enabled:
            return []
        found = self._peers.unknown()
        if self._unresolved:
            found.append(self._unresolved)
        return found + self._not_followed()

    def held(self, pool: str, own: int, now: float) -> ServedValue | WithheldMetric:
        """The requests that all replicas hold for a pool, `own` here; withheld while the part of a peer is unknown. It
        is as old as the oldest report of a peer."""
        unknown = self.unknown()
        if unknown:
            return WithheldMetric("replica_unknown", "; ".join(unknown))
        return ServedValue(float(own + self._peers.waiting(pool)), min(now, self._peers.oldest_report))

    def waiting(self, pool: str) -> int:
        """The requests that the known peers hold for a pool."""
        return self._peers.waiting(pool)

    def capacities(self, pool: str) -> Mapping[str, Envelope]:
        """What the known peers have learnt of a pool's capacity, by replica."""
        return self._peers.capacities(pool)

    def take_histories(self, pool: str) -> Sequence[DemandHistory]:
        """What peers have seen of a pool's load until this replica began to follow them, each once."""
        return self._peers.take_histories(pool)

    def report_demand(
        self, capacity: Callable[[str], Envelope | None], history: Callable[[str], DemandHistory | None]
    ) -> None:
        """Report to the peers what these return: what this replica has learnt of a pool's capacity, and what it has
        seen of its load."""
        self._service.publishers.capacity = capacity
        self._service.publishers.history = history

    def on_waiting(self, call: Callable[[str], None]) -> None:
        """Call this with a pool for which a peer holds its first requests."""
        self._peers.on_waiting = call

    # -- component ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen, and follow the peers. Raises CannotStart."""
        settings = self._settings
        if not settings.enabled:
            return
        check_address(settings.address, "address for replicas", "replicas.address")
        if settings.token_file:
            self._token = _token(settings.token_file)
        if self._tls is not None:
            load(self._tls)
        try:
            port = await self._listener.listen(*split_address(settings.address))
        except OSError as error:
            raise CannotStart(f"the address for replicas {settings.address} cannot be listened on: {error}") from error
        self._listening = True
        self.address = join_address(split_address(settings.address)[0], port)
        self._service.start()
        self._resolving = self._tasks.run("replicas", self._resolve)

    async def apply(self, config: Config) -> None:
        """Nothing: every option needs a restart."""
        self._config = config

    def readiness(self) -> list[str]:
        """Always ready: without its peers a replica picks by what it knows itself."""
        return []

    async def stop(self, grace: float) -> None:
        """Send a goodbye to the peers, and close."""
        if not self._listening:
            return
        self._listening = False
        if self._resolving is not None:
            self._resolving.cancel()
        self._service.stop()
        self._listener.goaway()
        await self._peers.stop()
        await self._listener.close()

    # -- within ------------------------------------------------------------------------------------------------------

    def _observe(self, event: Event) -> None:
        self._hook(event)
        if isinstance(event, PeerChanged | PeersCounted) and self.on_share is not None:
            self.on_share(self.share)

    async def _resolve(self) -> None:
        """Keep the addresses of the peers, and the files, up to date."""
        settings = self._settings
        while True:
            self._resolve_now.clear()
            if settings.service:
                await self._resolve_service(settings.service)
            else:
                self._peers.set_addresses(settings.peers)
            if self._tls is not None:
                await self._tls.check()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._config.reload.interval):
                    await self._resolve_now.wait()

    async def _resolve_service(self, service: str) -> None:
        """The addresses of the Service; the last ones where it cannot be resolved."""
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_SECONDS):
                found = await look_up(service)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error) or f"no answer in {RESOLVE_TIMEOUT_SECONDS:g} s"
            if not self._unresolved:
                self._hook(PeerRefused(service, "unresolved", f"the name cannot be resolved: {why}"))
            self._unresolved = f"the replicas of {service} (the name cannot be resolved: {why})"
        else:
            self._unresolved = ""
            self._peers.set_addresses(found)

    def _peer_began(self) -> None:
        """A peer listens here: it has started, so it may be followed again, or has a new address."""
        self._peers.retry()
        self._resolve_now.set()

    def _not_followed(self) -> list[str]:
        """Replicas that follow this one and are not followed: their part is missing."""
        now, known = self._clock.now(), self._peers.instances
        return [
            f"{name or instance} (it follows this replica and is not among its peers: list it)"
            for instance, (name, since) in sorted(self._service.listeners.items())
            if instance not in known and now - since >= _MUTUAL_SECONDS
        ]

    def _read_token(self) -> bytes:
        """The secret, read again for each connection; the last good one where the file cannot be read."""
        if self._settings.token_file:
            with suppress(CannotStart):
                self._token = _token(self._settings.token_file)
        return self._token

    def _handler_failed(self, path: str, error: Exception) -> None:
        self._hook(PeerRefused("", "error", f"{path}: {error!r}"))

    def _connection_failed(self, detail: str) -> None:
        self._hook(PeerRefused("", "malformed", f"HTTP/2: {detail}"))


def _token(path: str) -> bytes:
    """The secret in a file. Raises CannotStart."""
    try:
        with Path(path).open("rb") as file:
            token = file.read(_MAX_TOKEN_BYTES).strip()
    except OSError as error:
        raise CannotStart(f"replicas.tokenFile {path} cannot be read: {error.strerror or error}") from error
    if len(token) < 16:
        raise CannotStart(f"replicas.tokenFile {path} has a secret of {len(token)} bytes; write 16 or more random ones")
    return token


def _server_tls(settings: ReplicasConfig, clock: Clock, hook: Hook) -> ServerTls | None:
    """The TLS of the port, which serves clients with a certificate of the CA; None for plaintext."""
    if not settings.ca_file:
        return None
    files = TlsConfig(cert_file=settings.cert_file, key_file=settings.key_file, client_ca_file=settings.ca_file)
    return ServerTls(files, REPLICAS, hook=hook, clock=clock)
