"""Every option of ours: its key, what it may hold, its default and its meaning, as the fields of frozen dataclasses.

This is the one table of options: the reader walks it, `igw check` prints it, docs/configuration.md is compared with it.
The field `stale_after` is the key `staleAfter`. Durations are in seconds here, sizes in bytes, rates in tokens/s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from agent.config.accelerators import AddressTemplate, Codes, Words
from agent.config.labels import Labels, NodeName, PodName
from agent.config.reach import FilePath, HealthPath, HostName
from agent.config.values import Address, Duration, Kind, Name, Number, Size, Switch, UrlPath
from agent.engine_specs import ENGINE_LABELS, EngineSpec
from agent.profiles import DEFAULT_PROFILE, ProfileSpec
from agent.signals import HISTOGRAMS

_UNSET: Final = object()

DEFAULT_EXT_PROC_ADDRESS: Final = "127.0.0.1:9002"
MIN_INTERVAL: Final = 0.05
MIN_MODELS_INTERVAL: Final = 1.0


def option(kind: Kind, meaning: str, default: Any = _UNSET, *, shown: str = "", live: bool = True) -> Any:
    """A field that the file may set. `shown`: its default in words where it depends; `live`: a reload can change it."""
    metadata = {"kind": kind, "meaning": meaning, "shown": shown, "live": live}
    return (
        dataclasses.field(metadata=metadata)
        if default is _UNSET
        else dataclasses.field(default=default, metadata=metadata)
    )


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One model server as the configuration names it. The host of `address` may be a name, and stand for several."""

    address: str = option(Address(), "where the server listens; a name stands for all its addresses", shown="required")
    engine: str = option(Name(), "what runs there", shown="what its label `llm-d.ai/engine-type` says, else the pool's")
    labels: tuple[tuple[str, str], ...] = option(
        Labels(), "labels of the server, such as those of its pod", (), shown="none"
    )
    node: str = option(
        NodeName(), "the machine on which it runs, as an accelerator exporter calls it", "", shown="unknown"
    )
    pod: str = option(PodName(), "the pod in which it runs", "", shown="unknown")
    devices: tuple[str, ...] = option(
        Words(),
        "the ids or numbers of its accelerators, where others on its node or in its pod have some too",
        (),
        shown="all that are joined",
    )


@dataclass(frozen=True, slots=True)
class Accelerators:
    """Who tells of the accelerators under a pool's endpoints."""

    source: str = option(
        Name(),
        "who tells: `amd`, `dcgm`, `tpu` (an exporter's page), `nvml` (this machine) or `gke` (Cloud Monitoring)",
        shown="required",
    )
    address: str = option(
        AddressTemplate(),
        "where the exporter listens; `{node}` is the endpoint's node",
        "",
        shown="required for a page",
    )
    path: str = option(UrlPath(), "the exporter's page", "/metrics")
    prefix: str = option(Name(), "what the exporter is configured to put before every name", "", shown="none")
    join: str = option(Name(("pod", "node")), "what says whose device it is", "pod")
    interval: float = option(Duration(MIN_INTERVAL, 3600), "time between two scrapes", 5.0, shown="`5s`; of gke `1m`")
    timeout: float = option(Duration(0.01, 60), "how long an answer may take", 1.0, shown="`1s`; of gke `10s`")
    stale_after: float = option(
        Duration(0.1, 3600),
        "a reading of this age is withheld",
        15.0,
        shown="`15s`, or three intervals if longer; of gke `5m`",
    )
    fatal_xids: tuple[int, ...] = option(
        Codes(1, 9999), "error codes of NVIDIA that make an endpoint unfit", (48, 63, 64, 74, 79, 94, 95, 119, 120)
    )
    project: str = option(Name(), "of gke: the project", "", shown="required for gke")
    location: str = option(Name(), "of gke: the cluster's zone or region", "", shown="required for gke")
    cluster: str = option(Name(), "of gke: the cluster", "", shown="required for gke")


@dataclass(frozen=True, slots=True)
class Reach:
    """How the servers of one pool are reached, where that is not plain HTTP at the address where they serve."""

    scheme: str = option(Name(("http", "https")), "how all that is asked of them is asked", "http")
    ca_file: str = option(
        FilePath(), "certificates (PEM) of whom to trust to vouch for a server", "", shown="those of the system"
    )
    cert_file: str = option(FilePath(), "our certificate (PEM), for servers that want one", "", shown="none")
    key_file: str = option(FilePath(), "the key of our certificate (PEM)", "", shown="none")
    server_name: str = option(
        HostName(), "the host that a server's certificate must name", "", shown="the host of its address"
    )
    insecure_skip_verify: bool = option(Switch(), "trust whoever answers by TLS", default=False)
    token_file: str = option(FilePath(), "holds a bearer token, sent with all that is asked", "", shown="none")
    metrics_port: int = option(
        Number(0, 65535, whole=True), "where the page is", 0, shown="the engine's, or the address's"
    )
    metrics_path: str = option(UrlPath(), "the page with the metrics", "", shown="`scrape.path`")
    health_port: int = option(
        Number(0, 65535, whole=True), "where health is asked", 0, shown="the engine's, or the address's"
    )
    health_path: str | None = option(
        HealthPath(), "what is asked for health; `none` asks nothing", None, shown="the engine's"
    )


@dataclass(frozen=True, slots=True)
class Pool:
    """Model servers that can take each other's requests, behind one picker port."""

    endpoints: tuple[Endpoint, ...]
    accelerators: tuple[Accelerators, ...] = ()
    reach: Reach = dataclasses.field(default_factory=Reach)
    name: str = option(Name(), "the pool's name in metrics, state and logs", "default")
    engine: str = option(Name(), "what its model servers run, where an endpoint does not say", "vllm")
    profile: str = option(
        Name(),
        "the profile that picks: a ready-made one or one of `schedulingProfiles`",
        DEFAULT_PROFILE,
        shown="the file's profile when it has exactly one, else `least-cost`",
    )
    orca: bool = option(
        Switch(), "ask for a load report with each answer, and take it for a reading (ORCA)", default=False
    )
    ext_proc_address: str = option(
        Address(any_port=True),
        "where Envoy's ext_proc filter for this pool connects",
        DEFAULT_EXT_PROC_ADDRESS,
        live=False,
    )


@dataclass(frozen=True, slots=True)
class Budget:
    """What asking model servers for their pages may cost; where it is too little for `interval`, they are asked less
    often."""

    scrapes_per_second: float | None = option(
        Number(0.1, 1_000_000), "scrapes of model servers in a second, all pools together", None, shown="unlimited"
    )
    cpu: float | None = option(
        Number(0.001, 64), "cores that the agent may use, for all that it does", None, shown="unlimited"
    )

    @property
    def is_set(self) -> bool:
        """Whether there is one."""
        return self.scrapes_per_second is not None or self.cpu is not None


@dataclass(frozen=True, slots=True)
class Scrape:
    """How model servers are asked for their metrics."""

    budget: Budget = dataclasses.field(default_factory=Budget, kw_only=True)
    interval: float = option(Duration(MIN_INTERVAL, 3600), "time between two scrapes of an endpoint", 1.0)
    timeout: float = option(Duration(0.01, 60), "how long an answer may take, to its last byte", 1.0)
    path: str | None = option(
        UrlPath(),
        "the page with the metrics",
        None,
        shown="the engine's: `/metrics`, of `trtllm-serve` `/prometheus/metrics`",
    )
    max_page_bytes: int = option(Size(1024, 256 << 20), "a longer page is refused", 4 << 20)
    models_interval: float = option(
        Duration(MIN_MODELS_INTERVAL, 3600), "time between two questions for the models that are served", 10.0
    )
    histograms: tuple[str, ...] = option(
        Words(tuple(sorted(HISTOGRAMS))),
        f"histograms to read and export beside the signals, of {', '.join(f'`{name}`' for name in sorted(HISTOGRAMS))}",
        (),
        shown="none",
    )
    health_interval: float = option(Duration(0.1, 3600), "time between two questions at the engine's health path", 1.0)


@dataclass(frozen=True, slots=True)
class State:
    """When we stop believing what we know."""

    stale_after: float = option(
        Duration(0.1, 3600),
        "a reading of this age is withheld, and an endpoint without a younger page gets no requests",
        3.0,
        shown="`3s`, or three intervals where that is longer",
    )


@dataclass(frozen=True, slots=True)
class PrefillRate:
    """How fast a server prefills, in tokens of uncached prompt per second."""

    fixed: float | None = option(Number(1, 1e9), "use this rate and learn none", None, shown="learnt for each endpoint")
    default: float = option(Number(1, 1e9), "the rate until one was learnt", 15_928.0)
    low: float = option(Number(1, 1e9), "a learnt rate below this is raised to it", 100.0)
    high: float = option(Number(1, 1e9), "a learnt rate above this is lowered to it", 1_000_000.0)


@dataclass(frozen=True, slots=True)
class PrefixIndex:
    """What the agent remembers of the prompts that it sent where."""

    block_tokens: int = option(Number(16, 4096, whole=True), "tokens in one block of the index", 64, live=False)
    bytes_per_token: int = option(
        Number(1, 64, whole=True), "bytes of prompt text that are taken for one token", 4, live=False
    )
    max_tokens: int = option(
        Number(64, 1 << 24, whole=True), "the part of a prompt that is compared", 131_072, live=False
    )
    capacity_blocks: int = option(
        Number(1, 10_000_000, whole=True),
        "blocks remembered for an endpoint that does not report its cache",
        31_250,
        live=False,
    )
    most_blocks: int = option(
        Number(1, 1_000_000_000, whole=True),
        "blocks remembered for all endpoints of a pool together, about 250 bytes each",
        2_000_000,
        live=False,
    )
    auto_size: bool = option(Switch(), "follow the cache size that an endpoint reports", default=True, live=False)


@dataclass(frozen=True, slots=True)
class ExtProc:
    """The picker ports."""

    max_body: int = option(Size(1024, 256 << 20), "a longer request body is answered with 413", 16 << 20, live=False)
    max_held: int = option(
        Size(1024, 1 << 40),
        "bytes of bodies that a picker port holds at a time; a request past it is answered with 429",
        1 << 30,
        live=False,
    )
    fallbacks: int = option(
        Number(0, 8, whole=True),
        "endpoints that are named after the pick for the proxy's retries, where it takes a list",
        0,
        live=False,
    )
    drain_timeout: float = option(
        Duration(0, 3600), "how long a stop waits for requests that are being picked for", 30.0
    )


@dataclass(frozen=True, slots=True)
class Admin:
    """The HTTP port for people, Prometheus and gateways."""

    address: str = option(
        Address(any_port=True), "serves /metrics, /v1/..., /healthz and /readyz", "127.0.0.1:9090", live=False
    )
    max_watchers: int = option(Number(0, 10_000, whole=True), "readers of /v1/state/watch at a time", 64, live=False)
    max_state_bytes: int = option(
        Size(1024, 1 << 30), "a larger /v1/state, or event of its stream, is refused", 64 << 20, live=False
    )


@dataclass(frozen=True, slots=True)
class Reload:
    """How a changed file is noticed; SIGHUP always works."""

    interval: float = option(
        Duration(0.1, 3600), "time between two looks at the file and at the names of endpoints", 2.0
    )


@dataclass(frozen=True, slots=True)
class Log:
    """What is written to standard error."""

    format: str = option(Name(("text", "json")), "lines for people or JSON objects for a collector", "text", live=False)
    level: str = option(Name(("debug", "info", "warning", "error")), "the least that is written", "info", live=False)


SECTIONS: Final[Mapping[str, type]] = {
    "scrape": Scrape,
    "state": State,
    "prefillRate": PrefillRate,
    "prefixIndex": PrefixIndex,
    "extProc": ExtProc,
    "admin": Admin,
    "reload": Reload,
    "log": Log,
}


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration that was checked as a whole. `engines` are those that the file tells, `engine_labels` the keys of
    the label that names an endpoint's engine. `notes` say what was read and has no effect, and why."""

    source: str
    pools: tuple[Pool, ...]
    profiles: Mapping[str, ProfileSpec]
    scrape: Scrape
    state: State
    prefill_rate: PrefillRate
    prefix_index: PrefixIndex
    ext_proc: ExtProc
    admin: Admin
    reload: Reload
    log: Log
    engines: tuple[EngineSpec, ...] = ()
    engine_labels: tuple[str, ...] = ENGINE_LABELS
    notes: tuple[str, ...] = ()

    @property
    def latest_scrape(self) -> float:
        """Seconds after a scrape within which the next must begin: a page that takes its whole time-out is then here
        before the last one is stale. Never less than the interval."""
        return max(self.scrape.interval, self.state.stale_after - self.scrape.timeout)

    @property
    def longest_interval(self) -> float:
        """The longest interval in seconds to which a budget may stretch the configured one. The tenth that misses to
        `latest_scrape` is for waiting for one's turn."""
        return max(self.scrape.interval, 0.9 * self.latest_scrape)


class Option(NamedTuple):
    """One row of the table of options."""

    key: str
    field: str
    kind: Kind
    default: str
    meaning: str
    live: bool


def snake(key: str) -> str:
    """`staleAfter` -> `stale_after`."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)


def camel(field: str) -> str:
    """`stale_after` -> `staleAfter`."""
    first, *rest = field.split("_")
    return first + "".join(word.capitalize() for word in rest)


def options(section: type) -> Iterator[Option]:
    """The options of one section, in the order in which they are documented."""
    for field in dataclasses.fields(section):
        if "kind" not in field.metadata:
            continue
        kind: Kind = field.metadata["kind"]
        default = field.metadata["shown"] or f"`{kind.show(field.default)}`"
        yield Option(camel(field.name), field.name, kind, default, field.metadata["meaning"], field.metadata["live"])


def _parts(name: str, section: type) -> list[tuple[str, type]]:
    """A section and what stands within it."""
    return [(name, section), ("scrape.budget", Budget)] if section is Scrape else [(name, section)]


def reference() -> list[Option]:
    """Every option of ours with its whole key, such as `scrape.interval` or `pools[].endpoints[].address`."""
    parts = [
        ("pools[].", Pool),
        ("pools[].endpoints[].", Endpoint),
        ("pools[].scrape.", Reach),
        ("pools[].accelerators[].", Accelerators),
        *((f"{key}.", part) for name, whole in SECTIONS.items() for key, part in _parts(name, whole)),
    ]
    return [row._replace(key=prefix + row.key) for prefix, part in parts for row in options(part)]
