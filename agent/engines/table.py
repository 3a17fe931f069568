"""What an engine is: a table.

For each signal it has the sources that the signal may come from, the newest name first, or the reason why it has none.
A source names a sample, the labels that a series must carry, the label whose text is the value (when it is not the
sample's), and how several series of one server are combined: a data-parallel server shows one per engine. Whether a
page calls a sample a gauge, a counter or nothing at all (untyped) makes no difference: the table knows what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

DEFAULT_PAGE_PATH: Final = "/metrics"

# Which engine writes which beginnings of names; where one begins like another, the longer one stands first.
MARKS: Final[Mapping[str, str]] = {
    "vllm:": "vllm",
    "sglang:": "sglang",
    "sglang_": "sglang",
    "llamacpp:": "llamacpp",
    "trtllm_": "trtllm-serve",
    "nv_trt_llm_": "triton-tensorrt-llm",
    "nv_": "triton",
    "tgi_": "tgi",
    "jetstream_": "jetstream",
}
# Programs that are no model server and whose pages are taken for one's, by the beginnings of their names.
STRANGERS: Final[Mapping[str, str]] = {
    "DCGM_": "an exporter of NVIDIA's GPUs",
    "node_": "the node exporter of Prometheus",
    "envoy_": "Envoy",
    "igw_": "the inference gateway agent itself",
}

# Why a signal is on the page and has no reading, one word each. The first two are those of `agent.signals.admit`.
REFUSALS: Final[Mapping[str, str]] = {
    "not_finite": "the value is NaN or infinite",
    "out_of_range": "the value cannot be true for this signal",
    "bad_line": "a series of it cannot be read; the others alone would be a wrong sum",
    "duplicate_series": "a series of it stands on the page twice",
    "disagreement": "the engines of one server tell different values where there can only be one",
    "not_a_number": "the label that holds the value is no number",
    "unknown_unit": "older releases count something else under this name, and the page does not say which it is",
    "not_a_histogram": "a part of the histogram is missing, or its buckets do not grow up to its count",
    "cut_off": "more series of it may have followed the page's last line",
}


class Combine(Enum):
    """How several series of one server make one value."""

    SUM = "sum"
    MEAN_BY_BLOCKS = "mean weighted by the blocks of each engine's cache, plain where these are not known"
    SAME = "the value that all of them have"
    LATEST = "the largest"
    LEAST = "the smallest"
    NEWEST = "the label of the series with the largest value, which is a time; several engines together"
    EACH = "what each engine has, times the engines"


@dataclass(frozen=True, slots=True)
class Source:
    """One sample that a signal can come from. `label`: the value is this label's text, and not the sample's value.

    `where`: a series must have these labels; an empty text is also that of a label which is not there. `added`: other
    samples that belong to the sum; a page without one of them has no such source. `one_minus`: the signal is 1 less the
    value. `tokens_or_blocks`: releases differ in what they count under this name, and its HELP text says which. Blocks
    are multiplied by the block size.
    """

    sample: str
    combine: Combine = Combine.SUM
    where: Mapping[str, str] = field(default_factory=dict)
    label: str | None = None
    added: tuple[str, ...] = ()
    one_minus: bool = False
    tokens_or_blocks: bool = False

    @property
    def samples(self) -> tuple[str, ...]:
        """Every sample that it needs."""
        return (self.sample, *self.added)


@dataclass(frozen=True, slots=True)
class Ports:
    """The ports of a server whose page is not where it serves, as they are unless its start says otherwise: those at
    which it takes requests, and those of its page and of its health path."""

    serving: tuple[int, ...]
    page: int
    health: int

    def page_of(self, given: int) -> int:
        """Where the page of a server is that is called by this port."""
        return self.page if given in self.serving else given

    def health_of(self, given: int, page: int) -> int | None:
        """Where its health path is, if its page is at `page`; None where nobody can know."""
        if given == self.page or given in self.serving:
            return self.health
        return given if given != page else None


@dataclass(frozen=True, slots=True)
class Engine:
    """One kind of model server.

    `marks` begin every name that only this engine has; `silent` says of each signal without a source why it has none;
    `page_path` is where its page is unless the configuration says otherwise; `health_path` and `models_path` are asked
    beside the page (None: it has no such path); `ports` are there where these are at ports of their own; `hint` is what
    to check when the page lacks all of the engine's names. `answers_in_turn`: GETs that come on one connection before
    the answer to the last one has gone are answered all the same, in their order (HTTP/1.1 pipelining). `reports`: what
    a load report beside an answer calls a signal -> the signal (`agent.engines.report`).

    `rank` are the labels that tell the engines of one server apart: their values are combined. `copies` are labels that
    tell processes apart which report one and the same engine, as those of tensor parallelism do: the lowest one counts.
    `histograms` are the families of those that may be asked for (`agent.signals.HISTOGRAMS`), the newest name first.
    `unlike` are samples that only a page of another engine has beside this engine's names, with that engine.
    """

    name: str
    marks: tuple[str, ...]
    sources: Mapping[str, tuple[Source, ...]]
    silent: Mapping[str, str]
    health_path: str | None
    models_path: str | None
    answers_in_turn: bool = False
    reports: Mapping[str, str] = field(default_factory=dict)
    page_path: str = DEFAULT_PAGE_PATH
    ports: Ports | None = None
    rank: tuple[str, ...] = ("engine",)
    copies: tuple[str, ...] = ()
    unlike: Mapping[str, str] = field(default_factory=dict)
    hint: str = ""
    histograms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every sample name that this table looks for, once each."""
        wanted = (sample for sources in self.sources.values() for source in sources for sample in source.samples)
        return list(dict.fromkeys((*wanted, *self.unlike)))
