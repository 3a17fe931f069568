"""What the EPP part of a document says about flow control, besides the keys that are the agent's own options.

`saturationDetector` names a plugin whose parameters set options of `flowControl.saturationDetector`. It may be at the
top of the document as well, and there it may have the thresholds themselves (GIE 1.0 to 1.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol

from agent.config.epp.names import NOT_SUPPORTED, refusal
from agent.config.epp.parameters import PARAMETERS, ParameterSink
from agent.config.flow_control import CONCURRENCY, UTILIZATION
from agent.config.nodes import MappingNode, Mark, Node, ScalarNode, as_bool, is_null, kind_of
from agent.config.values import InvalidValue, quote, suggestion

SECTION: Final = "flowControl"
DETECTOR_SECTION: Final = "flowControl.saturationDetector"
# Types of detectors -> `flowControl.saturationDetector.type`.
DETECTOR_TYPES: Final = {"utilization-detector": UTILIZATION, "concurrency-detector": CONCURRENCY}
DEFAULT_DETECTOR: Final = "utilization-detector"  # that of llm-d's router, if it is an entry of `plugins`
USAGE_LIMIT: Final = "static-usage-limit-policy"
THRESHOLDS: Final = ("queueDepthThreshold", "kvCacheUtilThreshold", "metricsStalenessThreshold")
# Keys of the field within sections of the agent.
NESTED_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    SECTION: ("enableEviction", "usageLimitPolicyPluginRef"),
    DETECTOR_SECTION: ("pluginRef",),
    "flowControl.defaultPriorityBand": ("priority",),
    "flowControl.defaultNegativePriorityBand": ("priority",),
}
NO_EVICTION: Final = (
    "a request that a model server has begun is not ended: its work would be lost, and its client would see an error; "
    "remove this, and give a negative priority to what may be refused: it is shed before it is sent"
)


class PluginEntry(NamedTuple):
    """An entry of `plugins`: its type, the line, and what applies its parameters."""

    type: str
    mark: Mark
    apply: Callable[[], None]


class FlowControlSink(ParameterSink, Protocol):
    """Where what was read is put."""

    def entry(self, name: str) -> PluginEntry | None:
        """The entry of `plugins` with this name."""
        ...

    def entry_names(self) -> list[str]:
        """The names of all entries."""
        ...


def read_flow_control(document: MappingNode, sink: FlowControlSink, *, enabled: bool) -> None:
    """Read it after the plugins; problems go to the sink's reader. `enabled`: the feature gate is not off."""
    used = _top_level_detector(document, sink)
    node = document.entries.get(SECTION)
    table = node if isinstance(node, MappingNode) else None  # anything else is reported with the section
    if table is not None:
        inner = table.entries.get("saturationDetector")
        if isinstance(inner, MappingNode):
            used = _reference(inner, DETECTOR_SECTION, sink) or used
            used = used or any(key in inner.entries for key in ("type", "pluginRef"))
        name = "noEndpointRequestTTL"
        if name in table.entries and enabled and as_bool(table.entries.get("enabled", table)) is not False:
            sink.set("pools[].scaleFromZero", True, f"{SECTION}.{name}", table.marks[name])
        _eviction(table, sink)
        _usage_limit(table, sink)
    if not used and (entry := sink.entry(DEFAULT_DETECTOR)) is not None:
        _use(DEFAULT_DETECTOR, entry, "plugins", entry.mark, sink)


def _top_level_detector(document: MappingNode, sink: FlowControlSink) -> bool:
    """Whether the old key selects a detector."""
    key, reader = "saturationDetector", sink.reader
    table = reader.mapping(document.entries.get(key), key)
    if table is None:
        return False
    reader.marks.setdefault(key, table.mark)
    reader.known(table, key, ("pluginRef", *THRESHOLDS))
    used = _reference(table, key, sink)
    written = [name for name in THRESHOLDS if name in table.entries]
    if not written:
        return used
    sink.set(f"{DETECTOR_SECTION}.type", UTILIZATION, key, document.marks[key])
    for name in written:
        rule, path = PARAMETERS["utilization-detector"][name], f"{key}.{name}"
        try:
            rule.apply(sink, key, path, table.entries[name])
        except InvalidValue as invalid:
            reader.problem(table.entries[name].mark, path, str(invalid))
    return True


def _reference(table: MappingNode, key: str, sink: FlowControlSink) -> bool:
    """Whether `pluginRef` selects a detector."""
    node, path = table.entries.get("pluginRef"), f"{key}.pluginRef"
    if node is None or (isinstance(node, ScalarNode) and not node.text):  # empty is "not set" in the EPP
        return False
    sink.reader.marks[path] = table.marks["pluginRef"]
    name = _name(node, path, sink)
    if name is None:
        return True
    entry = sink.entry(name)
    type_ = name if entry is None else entry.type
    if type_ in DETECTOR_TYPES:
        _use(name, entry, path, node.mark, sink)
    elif entry is not None and type_ in NOT_SUPPORTED:
        pass  # reported with the plugin
    elif entry is not None:
        sink.reader.problem(node.mark, path, f"{type_} is not a saturation detector; {_one_of_detectors(type_)}")
    elif type_ in NOT_SUPPORTED:
        sink.reader.problem(node.mark, path, refusal(type_))
    else:
        valid = sorted({*sink.entry_names(), *DETECTOR_TYPES})
        sink.reader.problem(node.mark, path, f"{quote(name)} is not an entry of plugins; {suggestion(name, valid)}")
    return True


def _use(name: str, entry: PluginEntry | None, path: str, mark: Mark, sink: FlowControlSink) -> None:
    """Select a detector, with the parameters of its entry."""
    sink.set(f"{DETECTOR_SECTION}.type", DETECTOR_TYPES[name if entry is None else entry.type], path, mark)
    if entry is not None:
        entry.apply()


def _eviction(table: MappingNode, sink: FlowControlSink) -> None:
    node = table.entries.get("enableEviction")
    if node is None or is_null(node):
        return
    value = as_bool(node)
    if value is None:
        what = f"{kind_of(node)} is neither true nor false; write false, or remove it"
        sink.reader.problem(node.mark, f"{SECTION}.enableEviction", what)
    elif value:
        sink.reader.problem(node.mark, f"{SECTION}.enableEviction", NO_EVICTION)


def _usage_limit(table: MappingNode, sink: FlowControlSink) -> None:
    node, path = table.entries.get("usageLimitPolicyPluginRef"), f"{SECTION}.usageLimitPolicyPluginRef"
    if node is None or is_null(node) or (isinstance(node, ScalarNode) and not node.text):
        return
    name = _name(node, path, sink)
    if name is None:
        return
    entry = sink.entry(name)
    type_ = name if entry is None else entry.type
    if type_ == USAGE_LIMIT or (entry is not None and type_ in NOT_SUPPORTED):
        return
    if type_ in NOT_SUPPORTED:
        what = refusal(type_)
    elif entry is None:
        valid = sorted({*sink.entry_names(), USAGE_LIMIT})
        what = f"{quote(name)} is not an entry of plugins; {suggestion(name, valid)}"
    else:
        what = f"{type_} is not a usage limit policy; write {USAGE_LIMIT}, or remove it"
    sink.reader.problem(node.mark, path, what)


def _name(node: Node, path: str, sink: FlowControlSink) -> str | None:
    if isinstance(node, ScalarNode) and not is_null(node):
        return node.text
    sink.reader.problem(node.mark, path, f"{kind_of(node)} is not a name; write the name of an entry of plugins")
    return None


def _one_of_detectors(type_: str) -> str:
    return suggestion(type_, sorted(DETECTOR_TYPES))
