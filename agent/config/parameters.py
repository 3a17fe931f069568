"""What the parameters of the field's plugins mean here: carried over into our own sections, without effect, or refused.

A rule reads one parameter. It sets one of our options, notes that the parameter has no effect, or raises `Wrong`.
Parameters that are not in the table belong to our own filters and scorers, which check them themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from agent.config.document import Mark, Node, Scalar, as_bool, kind_of
from agent.config.engines import read_engines
from agent.config.labels import is_label_key
from agent.config.names import FIELD_MIN_BLOCK_TOKENS
from agent.config.reading import Reader
from agent.config.values import Name, Number, UrlPath, Wrong, meant, quote, shown, text_of
from agent.engine_specs import EngineSpec

NOT_YET_SAYS: Final = "is known, but this version does not do it yet; remove it"


class Part(Protocol):
    """What a rule may do with what it read."""

    reader: Reader

    @property
    def engines(self) -> tuple[str, ...] | None:
        """The engines that there are, configured ones included; None where any name passes."""
        ...

    def add_engine(self, engine: EngineSpec) -> None:
        """An engine that the file tells."""
        ...

    def note(self, what: str) -> None:
        """Something that was read and is not as written."""
        ...

    def set(self, option: str, value: Any, path: str, mark: Mark) -> None:
        """A value for one of our own options."""
        ...


Rule = Callable[[Part, str, str, Node], None]


def _ignored(why: str) -> Rule:
    def rule(part: Part, type_: str, path: str, node: Node) -> None:
        part.note(f"{path} of {type_}: without effect, {why}")

    return rule


def _only(value: str, otherwise: str) -> Rule:
    def rule(part: Part, type_: str, path: str, node: Node) -> None:
        if not isinstance(node, Scalar) or node.text != value:
            raise Wrong(f"{otherwise}; write {value} or leave it out")

    return rule


def _sets(option: str, low: float, high: float, least: float = 0, each: float = 1) -> Rule:
    """The parameter sets one of our whole numbers, `each` times it, and at least to `least`."""

    def rule(part: Part, type_: str, path: str, node: Node) -> None:
        value = Number(low, high, whole=True).read(node)
        if value == 0:  # the field's word for "not set"
            return
        wanted = int(value * each)
        if wanted < least:
            part.note(f"{path} of {type_}: {wanted} is too small for an index, {least:g} is used")
        part.set(option, max(wanted, int(least)), path, node.mark)

    return rule


def _sets_switch(option: str) -> Rule:
    def rule(part: Part, type_: str, path: str, node: Node) -> None:
        value = as_bool(node)
        if value is None:
            raise Wrong(f"{kind_of(node)} is neither true nor false; write true or false")
        part.set(option, value, path, node.mark)

    return rule


def _sets_path(option: str) -> Rule:
    def rule(part: Part, type_: str, path: str, node: Node) -> None:
        part.set(option, UrlPath().read(node), path, node.mark)

    return rule


def _sets_engine(part: Part, type_: str, path: str, node: Node) -> None:
    name = Name().read(node)
    if part.engines is not None and name not in part.engines:
        raise Wrong(f"{quote(name)} is no engine; {meant(name, part.engines)}")
    part.set("pools[].engine", name, path, node.mark)


def _adds_engines(part: Part, type_: str, path: str, node: Node) -> None:
    for engine in read_engines(node, path, part.reader):
        part.add_engine(engine)


def _sets_label_key(part: Part, type_: str, path: str, node: Node) -> None:
    text = text_of(node)
    if not text:  # the field's word for "not set"
        return
    if not is_label_key(text):
        raise Wrong(f"{shown(node)} is no label key; write a name, or PREFIX/NAME with a DNS name as the prefix")
    part.set("engineLabelKey", text, path, node.mark)


_ONE_PRODUCER: Final = _ignored("as there is one producer only")
_BLOCKS: Final = {
    "autoTune": _sets_switch("prefixIndex.autoSize"),
    "blockSizeTokens": _sets("prefixIndex.blockTokens", 0, 4096, FIELD_MIN_BLOCK_TOKENS),
    "blockSize": _sets("prefixIndex.blockTokens", 0, 1 << 14, FIELD_MIN_BLOCK_TOKENS, 1 / 4),  # in characters
    "hashBlockSize": _sets("prefixIndex.blockTokens", 0, 1 << 14, FIELD_MIN_BLOCK_TOKENS, 1 / 4),
    "lruCapacityPerServer": _sets("prefixIndex.capacityBlocks", 0, 10_000_000),
    "maxPrefixBlocksToMatch": _ignored("prefixIndex.maxTokens says how much of a prompt is compared"),
    "maxPrefixTokensToMatch": _sets("prefixIndex.maxTokens", 0, 1 << 24),
}
# What the field's plugins take beside the parameters that our own filters and scorers read themselves.
PARAMETERS: Final[Mapping[str, Mapping[str, Rule]]] = {
    "approx-prefix-cache-producer": _BLOCKS,
    "prefix-cache-scorer": {
        **_BLOCKS,
        "matchLengthWeight": _only("0", "the length of a match is not weighed"),
        "matchLengthScaleTokens": _ignored("as the length of a match is not weighed"),
        "prefixMatchInfoProducerName": _ONE_PRODUCER,
    },
    "prefix-cache-affinity-filter": {
        "inFlightLoadProducerName": _ONE_PRODUCER,
        "latencyPredictionInfoProducerName": _ONE_PRODUCER,
        "peakPrefillThroughput": _ignored("as the prefill rate is learnt; prefillRate.fixed sets one"),
        "prefixMatchInfoProducerName": _ONE_PRODUCER,
        "ttftSource": _only("prefillThroughput", "the first token is estimated from the prefill rate"),
    },
    "token-load-scorer": {
        "inFlightLoadProducerName": _ONE_PRODUCER,
        "nonTextTokenWeight": _ignored("as images are not counted in tokens"),
    },
    "inflight-load-producer": {
        "addEstimatedOutputTokens": _only("false", "only prompt tokens are counted"),
        "prefixMatchInfoProducerName": _ONE_PRODUCER,
        "syncCrossReplicaState": _ignored("as there is one replica"),
    },
    "max-score-picker": {"maxNumOfEndpoints": _only("1", "one endpoint is picked")},
    "metrics-data-source": {
        "insecureSkipVerify": _ignored("pools[].scrape.insecureSkipVerify says it for each pool"),
        "path": _sets_path("scrape.path"),
        "scheme": _only("http", "pools[].scrape.scheme says https, with the files that it needs"),
    },
    "models-data-source": {
        "insecureSkipVerify": _ignored("pools[].scrape.insecureSkipVerify says it for each pool"),
        "path": _only("/v1/models", "models are asked for where OpenAI has them"),
        "scheme": _only("http", "pools[].scrape.scheme says https, with the files that it needs"),
    },
    "core-metrics-extractor": {
        "defaultEngine": _sets_engine,
        "engineConfigs": _adds_engines,
        "engineLabelKey": _sets_label_key,
    },
}
