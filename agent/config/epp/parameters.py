"""What the parameters of EPP plugins mean here: each sets one of the agent's own options, has no effect, or is refused.

A rule handles one parameter. Parameters that are not in the table belong to the filters and scorers, which check them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from agent.config.epp.engines import engines_schema, read_engines
from agent.config.epp.names import MIN_BLOCK_TOKENS
from agent.config.flow_control import CONCURRENCY_MODES, STALENESS_POLICIES
from agent.config.nodes import Mark, Node, ScalarNode, as_bool, as_number, kind_of
from agent.config.reader import DocumentReader
from agent.config.values import (
    Boolean,
    InvalidValue,
    Name,
    Number,
    OneOf,
    UrlPath,
    describe,
    is_label_key,
    label_key_schema,
    quote,
    suggestion,
    text_of,
)
from agent.engine_specs import EngineSpec


class ParameterSink(Protocol):
    """Where a rule puts what it read."""

    reader: DocumentReader

    @property
    def engines(self) -> tuple[str, ...] | None:
        """The names of all engines, those of the file included; None where any name is valid."""
        ...

    def add_engine(self, engine: EngineSpec) -> None:
        """Add an engine that the file defines."""
        ...

    def set_engine_label(self, key: str) -> None:
        """Set the key of the label that names an endpoint's engine."""
        ...

    def note(self, what: str) -> None:
        """Note a part of the file that has no effect, or another effect than written."""
        ...

    def set(self, option: str, value: Any, path: str, mark: Mark) -> None:
        """Set one of the agent's own options."""
        ...


class Rule(NamedTuple):
    """`apply(sink, type, path, node)` handles a parameter and raises `InvalidValue`; `schema` is what it accepts."""

    apply: Callable[[ParameterSink, str, str, Node], None]
    schema: Mapping[str, Any]


def _ignored(why: str) -> Rule:
    def apply(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
        sink.note(f"{path} of {type_} has no effect: {why}")

    return Rule(apply, {"description": f"No effect: {why}."})


def _only(value: str, as_data: object, otherwise: str) -> Rule:
    def apply(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
        if not isinstance(node, ScalarNode) or node.text != value:
            raise InvalidValue(f"{otherwise}; write {value} or leave it out")

    return Rule(apply, {"enum": [as_data] if as_data == value else [as_data, value]})


def _sets(option: str, low: float, high: float, least: float = 0, factor: float = 1) -> Rule:
    """Sets an option to a whole number: `factor` times the parameter, at least `least`. 0 is "not set" in the EPP."""
    type_of = Number(low, high, whole=True)

    def apply(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
        value = type_of.read(node)
        if value == 0:
            return
        wanted = int(value * factor)
        if wanted < least:
            sink.note(f"{path} of {type_}: {wanted} is too small for an index; {least:g} is used")
        sink.set(option, max(wanted, int(least)), path, node.mark)

    return Rule(apply, {**type_of.schema(), "description": f"Sets {option}."})


def _sets_boolean(option: str) -> Rule:
    def apply(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
        value = as_bool(node)
        if value is None:
            raise InvalidValue(f"{kind_of(node)} is neither true nor false; write true or false")
        sink.set(option, value, path, node.mark)

    return Rule(apply, {**Boolean().schema(), "description": f"Sets {option}."})


def _sets_path(option: str) -> Rule:
    def apply(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
        sink.set(option, UrlPath().read(node), path, node.mark)

    return Rule(apply, {**UrlPath().schema(), "description": f"Sets {option}."})


def _set_engine(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
    name = Name().read(node)
    if sink.engines is not None and name not in sink.engines:
        raise InvalidValue(f"{quote(name)} is not an engine; {suggestion(name, sink.engines)}")
    sink.set("pools[].engine", name, path, node.mark)


def _add_engines(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
    for engine in read_engines(node, path, sink.reader):
        sink.add_engine(engine)


def _set_label_key(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
    text = text_of(node)
    if not text:  # "not set" in the EPP
        return
    if not is_label_key(text):
        raise InvalidValue(f"{describe(node)} is not a label key; write NAME, or PREFIX/NAME with a DNS prefix")
    sink.set_engine_label(text)


def _sets_number(option: str, low: float, high: float) -> Rule:
    type_of = Number(low, high)

    def apply(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
        sink.set(option, type_of.read(node), path, node.mark)

    return Rule(apply, {**type_of.schema(), "description": f"Sets {option}."})


def _sets_word(option: str, choices: tuple[str, ...]) -> Rule:
    type_of = OneOf(choices)

    def apply(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
        sink.set(option, type_of.read(node), path, node.mark)

    return Rule(apply, {**type_of.schema(), "description": f"Sets {option}."})


def _only_one(sink: ParameterSink, type_: str, path: str, node: Node) -> None:
    if as_number(node) != 1:
        raise InvalidValue(
            "no part of an endpoint's room is held back; write 1 or leave it out: flowControl.saturationDetector has "
            "the limits of an endpoint"
        )


_ONE_PRODUCER: Final = _ignored("there is only one producer")
_HTTP_ONLY: Final = _only("http", "http", "pools[].scrape.scheme sets https, beside the files that it needs")
_VERIFY: Final = _ignored("pools[].scrape.insecureSkipVerify sets it per pool")
_BLOCKS: Final = {
    "autoTune": _sets_boolean("prefixIndex.autoSize"),
    "blockSizeTokens": _sets("prefixIndex.blockTokens", 0, 4096, MIN_BLOCK_TOKENS),
    "blockSize": _sets("prefixIndex.blockTokens", 0, 1 << 14, MIN_BLOCK_TOKENS, 1 / 4),  # in characters
    "hashBlockSize": _sets("prefixIndex.blockTokens", 0, 1 << 14, MIN_BLOCK_TOKENS, 1 / 4),
    "lruCapacityPerServer": _sets("prefixIndex.capacityBlocks", 0, 10_000_000),
    "maxPrefixBlocksToMatch": _ignored("prefixIndex.maxTokens limits how much of a prompt is compared"),
    "maxPrefixTokensToMatch": _sets("prefixIndex.maxTokens", 0, 1 << 24),
}
_DETECTOR: Final = "flowControl.saturationDetector"
_NO_BURST: Final = _ignored("an endpoint gets no request above its limits")
# The parameters of EPP plugins besides those that the agent's filters and scorers read themselves.
PARAMETERS: Final[Mapping[str, Mapping[str, Rule]]] = {
    "approx-prefix-cache-producer": _BLOCKS,
    "prefix-cache-scorer": {
        **_BLOCKS,
        "matchLengthWeight": _only("0", 0, "the length of a match has no weight"),
        "matchLengthScaleTokens": _ignored("the length of a match has no weight"),
        "prefixMatchInfoProducerName": _ONE_PRODUCER,
    },
    "prefix-cache-affinity-filter": {
        "inFlightLoadProducerName": _ONE_PRODUCER,
        "latencyPredictionInfoProducerName": _ONE_PRODUCER,
        "peakPrefillThroughput": _ignored("the prefill rate is estimated; prefillRate.fixed sets one"),
        "prefixMatchInfoProducerName": _ONE_PRODUCER,
        "ttftSource": _only(
            "prefillThroughput", "prefillThroughput", "time to first token is estimated from the prefill rate"
        ),
    },
    "token-load-scorer": {
        "inFlightLoadProducerName": _ONE_PRODUCER,
        "nonTextTokenWeight": _ignored("images are not counted in tokens"),
    },
    "inflight-load-producer": {
        "addEstimatedOutputTokens": _only("false", False, "only prompt tokens are counted"),
        "prefixMatchInfoProducerName": _ONE_PRODUCER,
        "syncCrossReplicaState": _ignored("there is one replica"),
    },
    "max-score-picker": {"maxNumOfEndpoints": _only("1", 1, "one endpoint is picked")},
    "utilization-detector": {
        "headroom": _NO_BURST,
        "inFlightLoadProducerName": _ONE_PRODUCER,
        "kvCacheUtilThreshold": _sets_number(f"{_DETECTOR}.kvCacheUtilThreshold", 0.01, 1),
        "metricsStalenessThreshold": _ignored("state.staleAfter sets it for all readings"),
        "queueDepthThreshold": _sets(f"{_DETECTOR}.queueDepthThreshold", 1, 1e6),
        "stalenessPolicy": _sets_word(f"{_DETECTOR}.stalenessPolicy", STALENESS_POLICIES),
    },
    "concurrency-detector": {
        "concurrencyMode": _sets_word(f"{_DETECTOR}.concurrencyMode", CONCURRENCY_MODES),
        "headroom": _NO_BURST,
        "inFlightLoadProducerName": _ONE_PRODUCER,
        "maxConcurrency": _sets(f"{_DETECTOR}.maxConcurrency", 1, 1e12),
        "maxTokenConcurrency": _sets(f"{_DETECTOR}.maxTokenConcurrency", 1, 1e12),
    },
    "static-usage-limit-policy": {
        "threshold": Rule(_only_one, {"type": "number", "enum": [1], "description": "No effect."}),
    },
    "metrics-data-source": {
        "insecureSkipVerify": _VERIFY,
        "path": _sets_path("scrape.path"),
        "scheme": _HTTP_ONLY,
    },
    "models-data-source": {
        "insecureSkipVerify": _VERIFY,
        "path": _only("/v1/models", "/v1/models", "the list of models has the path that OpenAI's API gives it"),
        "scheme": _HTTP_ONLY,
    },
    "core-metrics-extractor": {
        "defaultEngine": Rule(_set_engine, {**Name().schema(), "description": "Sets the default of pools[].engine."}),
        "engineConfigs": Rule(_add_engines, engines_schema()),
        "engineLabelKey": Rule(
            _set_label_key,
            {
                "anyOf": [label_key_schema(), {"enum": ["", None]}],
                "description": "The key of the label that names an endpoint's engine.",
            },
        ),
    },
}
