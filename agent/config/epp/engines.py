"""`engineConfigs` of the EPP plugin `core-metrics-extractor`: engines that the file defines.

Keys and their meaning are those of llm-d's router 0.10. The `attributeKey` of an entry of `customMetrics` is one of the
agent's signals: plugins that use other attributes are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from agent.config.nodes import MappingNode, Node, ScalarNode, is_null, kind_of
from agent.config.reader import DocumentReader
from agent.config.values import Name, quote, suggestion
from agent.engine_specs import AUTO, MAX_SPEC, EngineSpec, MetricSpec, is_label, parse_spec
from agent.signals import (
    BLOCK_SIZE,
    BLOCKS,
    KV_USAGE,
    LORA_MAX,
    LORA_RUNNING,
    LORA_WAITING,
    RUNNING,
    SIGNALS,
    WAITING,
    SignalKind,
)

_RESERVED: Final = (AUTO, "default")
# Key -> the signals that it is a source of, each with the label that holds the value (empty: the sample's value).
_SPECS: Final[dict[str, tuple[tuple[str, str], ...]]] = {
    "queuedRequestsSpec": ((WAITING, ""),),
    "runningRequestsSpec": ((RUNNING, ""),),
    "kvUsageSpec": ((KV_USAGE, ""),),
    "loraSpec": (
        (LORA_MAX, "max_lora"),
        (LORA_RUNNING, "running_lora_adapters"),
        (LORA_WAITING, "waiting_lora_adapters"),
    ),
    "cacheBlockSizeSpec": ((BLOCK_SIZE, ""),),
    "cacheNumBlocksSpec": ((BLOCKS, ""),),
    "cacheInfoSpec": ((BLOCK_SIZE, "block_size"), (BLOCKS, "num_gpu_blocks")),
}
_LABEL_NAMES: Final = {"cacheBlockSizeLabelName": BLOCK_SIZE, "cacheNumBlocksLabelName": BLOCKS}
_NUMERIC: Final = tuple(name for name, row in SIGNALS.items() if row.kind in {SignalKind.GAUGE, SignalKind.COUNTER})
_KEYS: Final = ("name", *_SPECS, *_LABEL_NAMES, "customMetrics")


def engines_schema() -> dict[str, Any]:
    """The JSON Schema of the list."""
    name = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
    spec = {"type": ["string", "boolean", "null"], "maxLength": MAX_SPEC}
    spec |= {"pattern": rf"^\s*(?:{name}\s*(?:\{{[\s\S]*\}}\s*)?)?$"}
    label = {"type": ["string", "boolean", "null"], "pattern": "^(?:[a-zA-Z_][a-zA-Z0-9_]*)?$"}
    custom = {
        "type": "object",
        "additionalProperties": False,
        "required": ["attributeKey", "metricSpec"],
        "properties": {
            "attributeKey": {"enum": [*_NUMERIC, "", None], "description": "A signal."},
            "metricSpec": {**spec, "description": "A metric: NAME or NAME{label=value,...}."},
        },
    }
    properties = {
        "name": Name().schema(),
        **{key: {**spec, "description": "A metric: NAME or NAME{label=value,...}."} for key in _SPECS},
        **{
            key: {**label, "description": f"The label of cacheInfoSpec with the {signal}."}
            for key, signal in _LABEL_NAMES.items()
        },
        "customMetrics": {"type": ["array", "null"], "items": custom},
    }
    engine = {"type": "object", "additionalProperties": False, "required": ["name"], "properties": properties}
    return {"type": ["array", "null"], "items": engine, "description": "Engines besides the built-in ones."}


def read_engines(node: Node, path: str, reader: DocumentReader) -> Iterator[EngineSpec]:
    """The engines of the list without those that have a problem; problems go to the reader."""
    seen: dict[str, str] = {}
    for key, item in reader.items(node, path):
        table = reader.mapping(item, key)
        if table is None:
            continue
        before = len(reader.problems)
        spec = _engine(table, key, reader)
        if len(reader.problems) > before:
            continue
        if spec.name in seen:
            reader.problem(table.mark, f"{key}.name", f"a second engine named {quote(spec.name)}; give it another name")
            continue
        seen[spec.name] = key
        yield spec


def _engine(table: MappingNode, key: str, reader: DocumentReader) -> EngineSpec:
    before = len(reader.problems)
    reader.known(table, key, _KEYS)
    name = reader.value(table, key, "name", Name()) if "name" in table.entries else ""
    if name == "":
        reader.problem(table.mark, f"{key}.name", "missing; write the engine's name, such as my-server")
    elif name in _RESERVED:
        reader.problem(table.marks["name"], f"{key}.name", f"{quote(name)} is reserved; write another name")
    labels = dict(_label_names(table, key, reader))
    metrics: list[MetricSpec] = []
    for option, signals in _SPECS.items():
        text = _text(table, option, key, reader, "a metric, such as my_queue_length")
        found = _spec(text, table, option, f"{key}.{option}", reader) if text else None
        if found is not None:
            sample, where = found
            metrics += [
                MetricSpec(signal, sample, where, labels.get(signal, label) if label else "")
                for signal, label in signals
            ]
    metrics += _custom_metrics(table, key, reader)
    if not metrics and len(reader.problems) == before:
        reader.problem(table.mark, key, "an engine without metrics; write at least queuedRequestsSpec")
    return EngineSpec(name or "", tuple(metrics))


def _label_names(table: MappingNode, key: str, reader: DocumentReader) -> Iterator[tuple[str, str]]:
    """Signal and the label of the info sample that holds it."""
    for option, signal in _LABEL_NAMES.items():
        text = _text(table, option, key, reader, "the name of a label, such as page_size")
        if not text:
            continue
        if not is_label(text):
            what = f"{quote(text)} is not a label name; write letters, digits and _"
            reader.problem(table.marks[option], f"{key}.{option}", what)
        elif not _is_set(table, "cacheInfoSpec"):
            what = "needs cacheInfoSpec; add it, or remove this key"
            reader.problem(table.marks[option], f"{key}.{option}", what)
        yield signal, text


def _custom_metrics(table: MappingNode, key: str, reader: DocumentReader) -> Iterator[MetricSpec]:
    for path, item in reader.items(table.entries.get("customMetrics"), f"{key}.customMetrics"):
        entry = reader.mapping(item, path)
        if entry is None:
            continue
        reader.known(entry, path, ("attributeKey", "metricSpec"))
        signal = _text(entry, "attributeKey", path, reader, "a signal, such as prompt_tokens")
        text = _text(entry, "metricSpec", path, reader, "a metric, such as my_tokens_total")
        for option, found_text in (("attributeKey", signal), ("metricSpec", text)):
            if found_text is None and option not in entry.entries:
                reader.problem(entry.mark, f"{path}.{option}", f"missing; write {option}")
        if signal and signal not in _NUMERIC:
            what = f"{quote(signal)} is not a numeric signal; {suggestion(signal, _NUMERIC)}"
            reader.problem(entry.marks["attributeKey"], f"{path}.attributeKey", what)
            continue
        found = _spec(text, entry, "metricSpec", f"{path}.metricSpec", reader) if text else None
        if signal and found is not None:
            yield MetricSpec(signal, *found)


def _spec(
    text: str, table: MappingNode, option: str, path: str, reader: DocumentReader
) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    try:
        return parse_spec(text)
    except ValueError as error:
        reader.problem(table.marks[option], path, str(error))
        return None


def _text(table: MappingNode, option: str, key: str, reader: DocumentReader, example: str) -> str | None:
    """The text of a key; None where it is missing or empty, which the EPP treats alike."""
    node = table.entries.get(option)
    if node is None or is_null(node):
        return None
    if not isinstance(node, ScalarNode):
        reader.problem(table.marks[option], f"{key}.{option}", f"{kind_of(node)} is not text; write {example}")
        return None
    return node.text or None


def _is_set(table: MappingNode, option: str) -> bool:
    node = table.entries.get(option)
    return isinstance(node, ScalarNode) and not is_null(node) and bool(node.text)
