"""An engine: the table of its metrics, which defines how signals are read from its page.

For each signal the table has sources, the newest metric name first; a signal without a source is silent, with a reason.
A source names a sample, the labels that a series must have, the label that holds the value (if it is not the sample's
value), and how several series of one server are combined: a data-parallel server has one series per engine. The TYPE of
a sample on the page is ignored: the table defines it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from agent.engines.cache_resets import ResetCounter
from agent.signals import MODELS

DEFAULT_PAGE_PATH: Final = "/metrics"

# Programs that are not model servers but are often scraped by mistake: prefix of metric names -> program.
OTHER_PROGRAMS: Final[Mapping[str, str]] = {
    "DCGM_": "an exporter of NVIDIA's GPUs",
    "node_": "the node exporter of Prometheus",
    "envoy_": "Envoy",
    "igw_": "the inference gateway agent itself",
    "ray_": "Ray's metrics agent, with no engine that Ray runs",
}

# Labels that a client library adds to a series of one process of several: `pid` is the one of Python's
# prometheus_client in its multiprocess mode, for gauges without a mode of combination. Such series are no engines: one
# process reports, and the others keep what they reported last, or 0.
PROCESS_LABELS: Final = frozenset({"pid", "process", "process_id"})

# Why a signal on the page has no reading. The first two are those of `agent.signals.admit`.
REFUSALS: Final[Mapping[str, str]] = {
    "not_finite": "the value is NaN or infinite",
    "out_of_range": "the value is outside the valid range of the signal",
    "bad_line": "one of its series cannot be parsed; a sum of the others would be wrong",
    "duplicate_series": "one of its series is on the page twice",
    "disagreement": "the engines of one server report different values where there can only be one",
    "not_a_number": "the label that holds the value is not a number",
    "unknown_unit": "older releases count something else under this name, and the page does not say which it is",
    "not_a_histogram": "a part of the histogram is missing, or its buckets do not add up to its count",
    "cut_off": "the page may be cut off after this signal's last series",
    "ambiguous": "several series differ in a label that names no engine, or one series is of an unknown one of several",
    "not_a_time": "the value is not a time: it may be the sum of the times of several processes",
}


class SeriesCombination(Enum):
    """How several series of one server make one value."""

    SUM = "sum"
    MEAN_BY_BLOCKS = "mean weighted by the blocks of each engine's cache; unweighted where these are unknown"
    SAME = "the common value of all series"
    MAX = "maximum"
    MIN = "minimum"
    NEWEST = "label of the series with the largest value, which is a time; union over the engines"
    PER_ENGINE = "value of one engine times the number of engines"


@dataclass(frozen=True, slots=True)
class ModelSteps:
    """Models of one server that are steps of each other: a request that waits in one of them does not wait twice.

    `label` has the model's name. Requests count that wait for a model: one that is not in `steps` (the known ones
    before and after a model) and not in `pipelines` (what runs the steps), or one in `models`. Where several unknown
    models are left, it is not known which of them is a step, and their requests are only counted if there are none.
    """

    label: str
    models: frozenset[str]
    steps: frozenset[str]
    pipelines: frozenset[str]

    def counted(self, names: Iterable[str]) -> frozenset[str]:
        """The models of a page whose requests count; empty where that is unknown."""
        found = frozenset(names)
        if len(found) <= 1:
            return found
        left = found - self.steps - self.pipelines
        if left <= self.models or len(left) == 1:
            return left | (found & self.pipelines)
        return frozenset()


@dataclass(frozen=True, slots=True)
class SignalSource:
    """One sample that a signal can be read from. `label`: the value is this label's text instead of the sample's value.

    `where`: labels that a series must have; an empty text also matches a missing label. `added`: further samples of the
    sum; the source is missing where one of them is missing. `optional`: further samples of the sum, each with its other
    names; one that a page lacks adds nothing. `followed_by`: samples that the engine writes after these, so that a page
    with one of them is not cut off before them. `one_minus`: the signal is 1 minus the value. `tokens_or_blocks`:
    releases count different units under this name, and the HELP text says which; blocks are multiplied by the block
    size. `steps`: the series are of models that may be steps of each other. `any_part`: series that differ in any label
    but those of processes are parts of the sum.
    """

    sample: str
    combine: SeriesCombination = SeriesCombination.SUM
    where: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    added: tuple[str, ...] = ()
    one_minus: bool = False
    tokens_or_blocks: bool = False
    optional: tuple[tuple[str, ...], ...] = ()
    followed_by: tuple[str, ...] = ()
    steps: ModelSteps | None = None
    any_part: bool = False

    @property
    def samples(self) -> tuple[str, ...]:
        """Every sample that it reads."""
        return (self.sample, *self.added, *(name for names in self.optional for name in names))


@dataclass(frozen=True, slots=True)
class EnginePorts:
    """The default ports of an engine whose page is not at its serving port: those for requests, for the page and for
    the health path."""

    serving: tuple[int, ...]
    page: int
    health: int

    def page_of(self, given: int) -> int:
        """The port of the page of a server that is configured with this port."""
        return self.page if given in self.serving else given

    def health_of(self, given: int, page: int) -> int | None:
        """The port of its health path, if its page is at `page`; None where it is unknown."""
        if given == self.page or given in self.serving:
            return self.health
        return given if given != page else None


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of model server.

    `prefixes`: every metric name that only this engine has begins with one of them. `sources`: of each signal, in the
    order of preference. `silent`: why a signal without a source has none, where there is more to say than that the
    engine does not report it. `page_path` is the default path of its page; `health_path` and `models_path` are
    requested besides the page (None: there is no such path); `ports` are set where these have ports of their own;
    `hint` is what to check when a page has none of the engine's names. `pipelining`: it answers HTTP/1.1 pipelined
    requests. `reports`: name of a metric in a load report -> signal (`agent.engines.report`).

    `rank_labels` identify the engines of one server, whose values are combined. `part_labels` identify parts of one
    engine's value, which are summed. `copy_labels` identify processes that report the same engine, such as those of
    tensor parallelism: the lowest one counts. Series of a gauge that differ in another label are not known to be parts:
    of those that differ in `PROCESS_LABELS` only, the largest counts; any others are refused as `ambiguous`, and an
    older name without such series is used instead. `histograms`: metric families of each histogram, the newest name
    first (`agent.signals.HISTOGRAMS`). `foreign_samples`: samples that only occur on a page of another engine that
    shares this engine's names -> that engine. `cache_resets`: the counter of requests that empty the prefix cache,
    where the page has one.
    """

    name: str
    prefixes: tuple[str, ...]
    sources: Mapping[str, tuple[SignalSource, ...]]
    health_path: str | None
    models_path: str | None
    silent: Mapping[str, str] = field(default_factory=dict)
    pipelining: bool = False
    reports: Mapping[str, str] = field(default_factory=dict)
    page_path: str = DEFAULT_PAGE_PATH
    ports: EnginePorts | None = None
    rank_labels: tuple[str, ...] = ("engine",)
    part_labels: tuple[str, ...] = ("model_name",)
    copy_labels: tuple[str, ...] = ()
    foreign_samples: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    histograms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    cache_resets: ResetCounter | None = None

    def names(self) -> list[str]:
        """Every sample name that is read, once each."""
        wanted = (sample for sources in self.sources.values() for source in sources for sample in source.samples)
        return list(dict.fromkeys((*wanted, *self.foreign_samples)))

    def why_silent(self, signal: str) -> str:
        """Why its page has no such signal or histogram; empty where it has one."""
        if signal in self.sources or signal in self.histograms:
            return ""
        if signal in self.silent:
            return self.silent[signal]
        if signal == MODELS and self.models_path is not None:
            return f"not on the page; read from `{self.models_path}`"
        return f"{self.name} does not report it"
