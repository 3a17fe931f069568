"""`engineConfigs` of the field's plugin `core-metrics-extractor`: engines that are told rather than built in.

Keys and their meaning are those of llm-d's router 0.10. Of `customMetrics` those are read whose `attributeKey` is one
of our signals; the field's plugins that use any other attribute are not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from agent.config.document import Node, Scalar, Table, is_null, kind_of
from agent.config.reading import Reader
from agent.config.values import Name, meant, quote
from agent.engine_specs import AUTO, EngineSpec, MetricSpec, is_label, parse_spec
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
    Kind,
)

_RESERVED: Final = (AUTO, "default")
# Key -> the signals that it is a source of, each with the label that holds the value (empty: the sample's own value).
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
_KEYS: Final = ("name", *_SPECS, *_LABEL_NAMES, "customMetrics")


def read_engines(node: Node, path: str, reader: Reader) -> Iterator[EngineSpec]:
    """The engines of the list; what is wrong with one goes to the reader, and it is left out."""
    seen: dict[str, str] = {}
    for key, item in reader.items(node, path):
        table = reader.table(item, key)
        if table is None:
            continue
        before = len(reader.problems)
        spec = _engine(table, key, reader)
        if len(reader.problems) > before:
            continue
        if spec.name in seen:
            reader.wrong(table.mark, f"{key}.name", f"a second engine named {quote(spec.name)}; give it another name")
            continue
        seen[spec.name] = key
        yield spec


def _engine(table: Table, key: str, reader: Reader) -> EngineSpec:
    before = len(reader.problems)
    reader.known(table, key, _KEYS)
    name = reader.value(table, key, "name", Name()) if "name" in table.entries else ""
    if name == "":
        reader.wrong(table.mark, f"{key}.name", "missing; write the engine's name, such as my-server")
    elif name in _RESERVED:
        reader.wrong(table.marks["name"], f"{key}.name", f"{quote(name)} has a meaning of its own; write another name")
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
        reader.wrong(table.mark, key, "no metric of this engine; write at least queuedRequestsSpec")
    return EngineSpec(name or "", tuple(metrics))


def _label_names(table: Table, key: str, reader: Reader) -> Iterator[tuple[str, str]]:
    """Signal -> the label of the info sample that holds it."""
    for option, signal in _LABEL_NAMES.items():
        text = _text(table, option, key, reader, "the name of a label, such as page_size")
        if not text:
            continue
        if not is_label(text):
            what = f"{quote(text)} is no name of a label; write letters, digits and _"
            reader.wrong(table.marks[option], f"{key}.{option}", what)
        elif not _said(table, "cacheInfoSpec"):
            what = "a label of no sample; write cacheInfoSpec beside it, or remove it"
            reader.wrong(table.marks[option], f"{key}.{option}", what)
        yield signal, text


def _custom_metrics(table: Table, key: str, reader: Reader) -> Iterator[MetricSpec]:
    numbers = [name for name, row in SIGNALS.items() if row.kind in {Kind.GAUGE, Kind.COUNTER}]
    for path, item in reader.items(table.entries.get("customMetrics"), f"{key}.customMetrics"):
        entry = reader.table(item, path)
        if entry is None:
            continue
        reader.known(entry, path, ("attributeKey", "metricSpec"))
        signal = _text(entry, "attributeKey", path, reader, "a signal, such as prompt_tokens")
        text = _text(entry, "metricSpec", path, reader, "a metric, such as my_tokens_total")
        for option, said in (("attributeKey", signal), ("metricSpec", text)):
            if said is None and option not in entry.entries:
                reader.wrong(entry.mark, f"{path}.{option}", f"missing; write {option} beside the other")
        if signal and signal not in numbers:
            what = f"{quote(signal)} is no signal that is a number; {meant(signal, numbers)}"
            reader.wrong(entry.marks["attributeKey"], f"{path}.attributeKey", what)
            continue
        found = _spec(text, entry, "metricSpec", f"{path}.metricSpec", reader) if text else None
        if signal and found is not None:
            yield MetricSpec(signal, *found)


def _spec(
    text: str, table: Table, option: str, path: str, reader: Reader
) -> tuple[str, tuple[tuple[str, str], ...]] | None:
    try:
        return parse_spec(text)
    except ValueError as wrong:
        reader.wrong(table.marks[option], path, str(wrong))
        return None


def _text(table: Table, option: str, key: str, reader: Reader, example: str) -> str | None:
    """The text of a key; empty counts as not said, as the field has it."""
    node = table.entries.get(option)
    if node is None or is_null(node):
        return None
    if not isinstance(node, Scalar):
        reader.wrong(table.marks[option], f"{key}.{option}", f"{kind_of(node)} is no text; write {example}")
        return None
    return node.text or None


def _said(table: Table, option: str) -> bool:
    node = table.entries.get(option)
    return isinstance(node, Scalar) and not is_null(node) and bool(node.text)
