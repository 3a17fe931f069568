"""What the scrape loop is given for each address: what to ask, who reads the page, and who is told."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from agent.engine_specs import AUTO
from agent.engines import engine
from agent.engines.mapping import Engine, Extraction
from agent.scrape.reach import PLAIN, Reach
from agent.state.endpoint import UNIDENTIFIED, Identity


class Target(NamedTuple):
    """What to ask, how often (seconds), how long to wait for the whole page (seconds), and how large it may be.

    `histograms` are read beside the engine's signals.
    `engine` is empty where no model server answers: then nothing is asked beside the page. `table` is that of an engine
    which the configuration tells; the others are known by their names. The engine `auto` is recognised by its page, and
    what is asked beside the page is asked from then on. `health_path` is the engine's where it is None; where it is
    empty, health is not asked for. `name` is what the pool calls the server's host, empty for an address. Ports of 0
    are those that the engine has for it beside the address's, or the address's. `identity` is who serves there, as far
    as the pool says.
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
    reach: Reach = PLAIN
    name: str = ""
    metrics_port: int = 0
    health_port: int = 0
    table: Engine | None = None
    identity: Identity = UNIDENTIFIED

    def page_at(self) -> str:
        """The address of its page."""
        return self._at(self._page_port())

    def health_at(self, table: Engine | None) -> str:
        """The address of its health path, if it is this engine; empty where its health is not to be asked for."""
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

    def way(self) -> tuple[object, ...]:
        """All that tells where connections lead, and how."""
        return self.address, self.metrics_port, self.health_port, self.reach, self.name

    def engine_table(self) -> Engine | None:
        """The table of its engine; None where no model server answers, and where its engine is to be recognised."""
        if self.table is not None or self.engine in {"", AUTO}:
            return self.table
        return engine(self.engine)

    def same_server(self, later: Target) -> bool:
        """Whether `later` is the same server, and its pages are read alike: else no answer to this is one to that."""
        alike = self.engine == later.engine and self.table == later.table and self.histograms == later.histograms
        return alike and not self.identity.replaced_by(later.identity)


Read = TypeVar("Read", covariant=True)  # noqa: PLC0105
Told = TypeVar("Told", contravariant=True)  # noqa: PLC0105


class Reader(Protocol[Read]):
    """Makes something of the pages of one address."""

    def extract(self, page: bytes, *, whole: bool = False) -> Read:
        """What the page says, or PageRefused. `whole`: the transport has shown that nothing is missing at the end."""
        ...


class PageSink(Protocol[Told]):
    """Who is told of pages; called on the event loop, so it must be quick. All times are monotonic seconds."""

    def observed(self, address: str, extraction: Told, at: float, took: float, size: int) -> bool:
        """A page of `size` bytes that was asked for at `at` and was read `took` seconds later; True when it comes from
        another server than the page before."""
        ...

    def failed(self, address: str, reason: str, detail: str, at: float, took: float) -> None:
        """A scrape that brought no page."""
        ...


class Sink(PageSink[Extraction], Protocol):
    """Who is told of a model server: of its pages, and of what is asked beside them."""

    def recognised(self, address: str, engine: str) -> None:
        """Whose its page is, where that was to be recognised; told before the page itself."""
        ...

    def served_models(self, address: str, names: frozenset[str], at: float) -> None:
        """The models that the endpoint answers for."""
        ...

    def health(self, address: str, answered: bool, reason: str, detail: str, at: float, took: float) -> None:  # noqa: FBT001
        """What the health path said, or that it did not; `reason` is one of `agent.state.health.HEALTH_REASONS`, empty
        where it answered, and where it is not asked any more."""
        ...
