"""The interfaces of the scrape loop: a target, the reader of its pages, and the sinks that receive the results."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol, TypeVar

from agent.engine_specs import AUTO
from agent.engines import engine
from agent.engines.mapping import Extraction
from agent.engines.table import Engine
from agent.scrape.server_access import PLAIN, ServerAccess
from agent.state.identity import UNIDENTIFIED, Identity


class Target(NamedTuple):
    """One address to scrape.

    `interval` and `timeout` (of the whole page) are in seconds. `histograms` are read besides the engine's signals.
    `engine` is empty for an exporter, which is not a model server: only its page is requested. `table` is the table of
    an engine from the configuration; the others are known by name. With the engine `auto` the engine is recognised from
    the page, and its probes are sent from then on. `health_path` is the engine's where it is None; empty: health is not
    probed. `name` is the server's host name in the pool, empty for an address. A port of 0 is the engine's default for
    the port of the address, or that port. `identity` is the server at the address, as far as discovery knows it.
    """

    address: str
    engine: str
    path: str = "/metrics"
    interval: float = 1.0
    timeout: float = 1.0
    max_page_bytes: int = 4 << 20
    models_interval: float = 10.0
    histograms: tuple[str, ...] = ()
    health_interval: float = 1.0
    health_path: str | None = None
    access: ServerAccess = PLAIN
    name: str = ""
    metrics_port: int = 0
    health_port: int = 0
    table: Engine | None = None
    identity: Identity = UNIDENTIFIED

    def page_address(self) -> str:
        """The host:port of its page."""
        return self._at(self._page_port())

    def health_address(self, table: Engine | None) -> str:
        """The host:port of its health path, if it is this engine; empty where its health is not probed."""
        path = self.health_path
        if path is None and table is not None:
            path = table.health_path
        if not path:
            return ""
        port = self.health_port
        if not port and table is not None and table.ports is not None:
            found = table.ports.health_of(self._port(), self._page_port())
            if found is None and not self.health_path:
                return ""
            port = found or 0
        return self._at(port)

    def _port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def _page_port(self) -> int:
        table = self.engine_table()
        if self.metrics_port or table is None or table.ports is None:
            return self.metrics_port or self._port()
        return table.ports.page_of(self._port())

    def _at(self, port: int) -> str:
        return f"{self.address.rpartition(':')[0]}:{port}" if port else self.address

    def connection_key(self) -> tuple[object, ...]:
        """Everything that determines where connections are opened to, and how."""
        return self.address, self.metrics_port, self.health_port, self.access, self.name

    def engine_table(self) -> Engine | None:
        """The table of its engine; None for an exporter, and for an engine that is to be recognised."""
        if self.table is not None or self.engine in {"", AUTO}:
            return self.table
        return engine(self.engine)

    def same_server(self, later: Target) -> bool:
        """Whether `later` is the same server and its pages are read in the same way, so that results remain valid."""
        alike = self.engine == later.engine and self.table == later.table and self.histograms == later.histograms
        return alike and not self.identity.replaced_by(later.identity)


ResultT_co = TypeVar("ResultT_co", covariant=True)
ResultT_contra = TypeVar("ResultT_contra", contravariant=True)


class PageReader(Protocol[ResultT_co]):
    """Reads the pages of one address."""

    def extract(self, page: bytes, *, whole: bool = False) -> ResultT_co:
        """The content of the page, or PageRefused. `whole`: the transport showed that the page is complete."""
        ...


class PageSink(Protocol[ResultT_contra]):
    """Receives the results of page scrapes, on the event loop: it must be quick. All times are monotonic seconds."""

    def observed(self, address: str, extraction: ResultT_contra, at: float, took: float, size: int) -> bool:
        """A page of `size` bytes was requested at `at` and read `took` seconds later.

        True when it comes from another server than the page before.
        """
        ...

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        """A scrape failed; `reason` is one of `agent.scrape.reasons.REASONS`."""
        ...


class Sink(PageSink[Extraction], Protocol):
    """Receives the results of scraping model servers: pages and probes."""

    def recognised(self, address: str, engine: str) -> None:
        """The engine of an endpoint was recognised; called before `observed` for the page itself."""
        ...

    def served_models(
        self, address: str, names: frozenset[str], at: float, roots: Mapping[str, str] | None = None
    ) -> None:
        """The models that the endpoint serves, and the place of the weights of each, where the list has it."""
        ...

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:  # noqa: FBT001
        """The result of a health probe; `reason` is one of `agent.state.health.HEALTH_REASONS`, empty for a success.

        Not `answered` with an empty `reason`: health is not probed any more.
        """
        ...
