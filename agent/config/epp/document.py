"""The EPP (endpoint picker) part of a document: plugins, scheduling profiles, data layer, feature gates.

An EndpointPickerConfig of llm-d's router loads unchanged. Filters and scorers become a `ProfileSpec`. Other plugins are
accepted where the agent does the same without them, and their parameters set the agent's own options
(`EppSettings.imported`). A plugin or a feature that is not supported is refused by name, as a picker that silently
ignores half of its rules is worse than one that does not start.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from agent.config.epp.flow_control import PluginEntry, read_flow_control
from agent.config.epp.names import (
    API_VERSIONS,
    BUILT_IN,
    FLOW_CONTROL,
    GATES_BUILT_IN,
    GATES_NOT_SUPPORTED,
    KIND,
    NOT_SUPPORTED,
    NOT_SUPPORTED_TEXT,
    RENAMED,
    refusal,
)
from agent.config.epp.parameters import PARAMETERS, ParameterSink
from agent.config.epp_settings import EppSettings, ImportedOption
from agent.config.nodes import MappingNode, Mark, Node, ScalarNode, as_bool, is_null, kind_of, plain
from agent.config.reader import DocumentReader
from agent.config.scrape import MIN_INTERVAL, MIN_MODELS_INTERVAL
from agent.config.values import Duration, InvalidValue, Name, Number, OneOf, quote, show_duration, suggestion
from agent.config.vocabulary import Vocabulary
from agent.engine_specs import EngineSpec
from agent.profiles import PluginSpec, ProfileSpec

MAX_WEIGHT: Final = 1e6
SOURCE_INTERVAL: Final = Duration(MIN_INTERVAL, 3600)
# Keys of `dataLayer` that are refused.
NOT_SUPPORTED_KEYS: Final = ("discovery", "peerDiscovery", "crossReplicaSyncerPluginRef", "crossReplicaSyncInterval")


class _Plugin(NamedTuple):
    spec: PluginSpec
    role: str  # the last word of its type, such as `scorer`; empty for an unknown type
    mark: Mark


def read_epp(document: MappingNode, reader: DocumentReader, vocabulary: Vocabulary | None) -> EppSettings:
    """The EPP part of the document; problems go to the reader."""
    return _EppReader(reader, vocabulary).read(document)


class _ParametersOfDetector:
    """Takes what the parameters of a detector set, for the case that the detector is selected."""

    def __init__(self, reader: _EppReader) -> None:
        self.reader = reader.reader
        self.engines = reader.engines
        self.add_engine = reader.add_engine
        self.set_engine_label = reader.set_engine_label
        self.note = reader.note
        self.options: list[tuple[str, Any, str, Mark]] = []

    def set(self, option: str, value: Any, path: str, mark: Mark) -> None:
        """Keep a value for one of the agent's own options."""
        self.options.append((option, value, path, mark))


class _EppReader:
    def __init__(self, reader: DocumentReader, vocabulary: Vocabulary | None) -> None:
        self.reader = reader
        self.vocabulary = vocabulary
        self.settings = EppSettings()
        self.plugins: dict[str, _Plugin] = {}
        self.detectors: dict[str, _ParametersOfDetector] = {}  # by the names of their plugins, until they are selected

    def read(self, document: MappingNode) -> EppSettings:
        """Read all of it; problems go to the reader."""
        entries, reader = document.entries, self.reader
        for key, valid in (("apiVersion", API_VERSIONS), ("kind", (KIND,))):
            if key not in entries:
                reader.problem(document.mark, key, f"missing; write {key}: {valid[0]}")
            else:
                reader.value(document, "", key, OneOf(valid))
        self._gates(entries.get("featureGates"))
        for key, node in reader.items(entries.get("plugins"), "plugins"):
            self._plugin(key, node)
        for key, node in reader.items(entries.get("schedulingProfiles"), "schedulingProfiles"):
            self._profile(key, node)
        for key in ("dataLayer", "data"):
            self._data_layer(entries.get(key), key)
        handler = reader.mapping(entries.get("requestHandler"), "requestHandler")
        if handler is not None:
            reader.known(handler, "requestHandler", ("parsers",))
            for key, node in reader.items(handler.entries.get("parsers"), "requestHandler.parsers"):
                self._reference(key, node, "parser")
        if "parser" in entries and not is_null(entries["parser"]):
            self._reference("parser", entries["parser"], "parser")
        switch = self.settings.imported.get(f"{FLOW_CONTROL}.enabled")
        read_flow_control(document, self, enabled=switch is None or bool(switch.value))
        self._unused_detectors()
        self.settings.plugin_types = {name: plugin.spec.type for name, plugin in self.plugins.items()}
        return self.settings

    def _gates(self, node: Node | None) -> None:
        for key, item in self.reader.items(node, "featureGates"):
            text = item.text if isinstance(item, ScalarNode) else ""
            name, written, value = text.partition("=")
            if written and value.lower() not in {"true", "false"}:
                self.reader.problem(item.mark, key, f"{quote(text)} is not valid; write {name} or {name}=false")
            elif name in GATES_NOT_SUPPORTED:
                if value.lower() == "false":
                    continue
                self.reader.problem(item.mark, key, f"{name} {NOT_SUPPORTED_TEXT}")
            elif name == FLOW_CONTROL:
                self.set(f"{FLOW_CONTROL}.enabled", value.lower() != "false", key, item.mark)
            elif name not in GATES_BUILT_IN:
                self.reader.problem(
                    item.mark,
                    key,
                    f"{quote(text)} is not a feature gate; {suggestion(name, (*GATES_BUILT_IN, *GATES_NOT_SUPPORTED))}",
                )

    # -- plugins ---------------------------------------------------------------------------------------------------

    def _plugin(self, key: str, node: Node) -> None:
        table = self.reader.mapping(node, key)
        if table is None:
            return
        self.reader.known(table, key, ("name", "type", "parameters"))
        kind = table.entries.get("type")
        if kind is None or is_null(kind) or not isinstance(kind, ScalarNode):
            what = "missing" if kind is None else f"{kind_of(kind)} is not a type"
            self.reader.problem(table.mark, f"{key}.type", f"{what}; write the plugin's type, such as queue-scorer")
            return
        type_ = RENAMED.get(kind.text, kind.text)
        name = kind.text
        if "name" in table.entries:
            name = self.reader.value(table, key, "name", Name()) or kind.text
        if name in self.plugins:
            first = self.plugins[name].mark
            self.reader.problem(
                table.mark,
                key,
                f"a second plugin named {quote(name)}; the first is on line {first}; set the name of one of them",
            )
            return
        role = self._role(type_)
        if role == "":
            self.reader.problem(kind.mark, f"{key}.type", self._unknown(type_))
        parameters = self.reader.mapping(table.entries.get("parameters"), f"{key}.parameters")
        sink: ParameterSink = self
        if role == "detector":
            sink = self.detectors[name] = _ParametersOfDetector(self)
        own = self._import(type_, f"{key}.parameters", parameters, sink) if parameters is not None and role else {}
        spec = PluginSpec(type_, name, own)
        self.plugins[name] = _Plugin(spec, role, table.mark)
        if role in {"filter", "scorer"} and self.vocabulary is not None:
            invalid = self.vocabulary.check(type_, own)
            if invalid is not None:
                self.reader.problem_at(f"{key}.parameters.{invalid[0]}", invalid[1])

    def _role(self, type_: str) -> str:
        if type_ in BUILT_IN:
            return type_.rpartition("-")[2]
        if self.vocabulary is None:
            kind = type_.rpartition("-")[2]
            return kind if kind in {"filter", "scorer"} and type_ not in NOT_SUPPORTED else ""
        return "filter" if type_ in self.vocabulary.filters else "scorer" if type_ in self.vocabulary.scorers else ""

    def _unknown(self, type_: str) -> str:
        if type_ in NOT_SUPPORTED:
            return refusal(type_)
        ours = (*self.vocabulary.filters, *self.vocabulary.scorers) if self.vocabulary else ()
        return f"{quote(type_)} is not a plugin type; {suggestion(type_, sorted((*BUILT_IN, *ours)))}"

    def _import(self, type_: str, key: str, parameters: MappingNode, sink: ParameterSink) -> dict[str, object]:
        """Apply the rules of a plugin's parameters; the parameters without a rule, which are the plugin's own."""
        rules = PARAMETERS.get(type_, {})
        own: dict[str, object] = {}
        # Engines first: another parameter may name one that is defined after it.
        for name, node in sorted(parameters.entries.items(), key=lambda entry: entry[0] != "engineConfigs"):
            path = f"{key}.{name}"
            self.reader.marks[path] = parameters.marks[name]
            rule = rules.get(name)
            if rule is not None:
                try:
                    rule.apply(sink, type_, path, node)
                except InvalidValue as invalid:
                    self.reader.problem(node.mark, path, str(invalid))
            elif type_ in BUILT_IN:
                what = (
                    f"unknown parameter; {suggestion(name, sorted(rules))}"
                    if rules
                    else f"{type_} has no parameters; remove it"
                )
                self.reader.problem(parameters.marks[name], path, what)
            else:
                own[name] = plain(node)
        return own

    @property
    def engines(self) -> tuple[str, ...] | None:
        """The names of all engines, those of the file included; None where any name is valid."""
        return (*self.vocabulary.engines, *self.settings.engines) if self.vocabulary is not None else None

    def add_engine(self, engine: EngineSpec) -> None:
        """Add an engine that the file defines."""
        self.settings.engines[engine.name] = engine

    def set_engine_label(self, key: str) -> None:
        """Set the key of the label that names an endpoint's engine."""
        self.settings.engine_labels = (key,)

    def note(self, what: str) -> None:
        """Note a part of the file that has no effect, or another effect than written."""
        self.settings.notes.append(what)

    def set(self, option: str, value: Any, path: str, mark: Mark) -> None:
        """Set one of the agent's own options; two different values are a problem."""
        first = self.settings.imported.setdefault(option, ImportedOption(value, mark, path))
        if first.value != value:
            self.reader.problem(
                mark, path, f"differs from {first.key} on line {first.mark}, which sets the same; keep one of them"
            )

    # -- flow control ----------------------------------------------------------------------------------------------

    def entry(self, name: str) -> PluginEntry | None:
        """The entry of `plugins` with this name."""
        plugin = self.plugins.get(name)
        return None if plugin is None else PluginEntry(plugin.spec.type, plugin.mark, lambda: self._select(name))

    def entry_names(self) -> list[str]:
        """The names of all entries."""
        return sorted(self.plugins)

    def _select(self, name: str) -> None:
        """Set the options that the parameters of a detector set."""
        detector = self.detectors.pop(name, None)
        if detector is not None:
            for option, value, path, mark in detector.options:
                self.set(option, value, path, mark)

    def _unused_detectors(self) -> None:
        for name, detector in self.detectors.items():
            if detector.options:
                self.note(f"the parameters of {name} have no effect: no saturationDetector refers to it")

    # -- references to plugins -------------------------------------------------------------------------------------

    def _plugin_of(self, key: str, table: MappingNode) -> _Plugin | None:
        """The plugin that `pluginRef` names, or None, which is a problem."""
        node = table.entries.get("pluginRef")
        if not isinstance(node, ScalarNode) or is_null(node):
            what = "missing" if node is None else f"{kind_of(node)} is not a name"
            self.reader.problem(table.mark, f"{key}.pluginRef", f"{what}; write the name of an entry of plugins")
            return None
        plugin = self.plugins.get(node.text)
        if plugin is None:
            advice = suggestion(node.text, sorted(self.plugins)) if self.plugins else "add it there"
            self.reader.problem(
                node.mark, f"{key}.pluginRef", f"{quote(node.text)} is not an entry of plugins; {advice}"
            )
        return plugin

    def _reference(self, key: str, node: Node, role: str) -> None:
        """Check a reference to a plugin of this role."""
        table = self.reader.mapping(node, key)
        if table is None:
            return
        self.reader.known(table, key, ("pluginRef",))
        plugin = self._plugin_of(key, table)
        if plugin is not None and plugin.role not in {role, ""}:
            self.reader.problem(
                table.mark, f"{key}.pluginRef", f"{plugin.spec.type} is not a {role}; write the name of one"
            )

    def _profile(self, key: str, node: Node) -> None:
        table = self.reader.mapping(node, key)
        if table is None:
            return
        self.reader.known(table, key, ("name", "plugins"))
        if "name" not in table.entries:
            self.reader.problem(table.mark, f"{key}.name", "missing; write the profile's name, such as default")
        name = self.reader.value(table, key, "name", Name()) or ""
        filters: list[PluginSpec] = []
        scorers: list[tuple[PluginSpec, float]] = []
        seen: set[str] = set()
        for path, item in self.reader.items(table.entries.get("plugins"), f"{key}.plugins"):
            entry = self.reader.mapping(item, path)
            if entry is None:
                continue
            self.reader.known(entry, path, ("pluginRef", "weight"))
            weight = (
                self.reader.value(entry, path, "weight", Number(0, MAX_WEIGHT)) if "weight" in entry.entries else None
            )
            plugin = self._plugin_of(path, entry)
            if plugin is None or not plugin.role:
                continue
            if plugin.spec.name in seen:
                self.reader.problem(
                    entry.mark, path, f"{quote(plugin.spec.name)} is listed twice in this profile; keep one"
                )
            seen.add(plugin.spec.name)
            if plugin.role == "filter":
                filters.append(plugin.spec)
            elif plugin.role == "scorer":
                scorers.append((plugin.spec, 1.0 if weight is None else weight))
            elif plugin.role == "detector":
                self.note(f"{path} has no effect: {plugin.spec.type} limits all profiles alike")
            elif plugin.role != "picker":
                self.reader.problem(
                    entry.mark,
                    path,
                    f"{plugin.spec.type} does not belong in a profile; list filters, scorers and a picker",
                )
            if weight is not None and plugin.role != "scorer":
                self.settings.notes.append(f"{path}.weight has no effect: {plugin.spec.type} is not a scorer")
        if not scorers and not any(problem.key.startswith((key, "plugins")) for problem in self.reader.problems):
            self.reader.problem(table.mark, key, "a profile without scorers; add the pluginRef of at least one")
        if name in self.settings.profiles:
            self.reader.problem(
                table.mark, f"{key}.name", f"a second profile named {quote(name)}; give it another name"
            )
        elif name:
            self.settings.profiles[name] = ProfileSpec(name, tuple(filters), tuple(scorers))

    def _data_layer(self, node: Node | None, key: str) -> None:
        table = self.reader.mapping(node, key)
        if table is None:
            return
        self.reader.known(table, key, ("injectDefaults", "sources", *NOT_SUPPORTED_KEYS))
        for name in NOT_SUPPORTED_KEYS:
            if name in table.entries and not is_null(table.entries[name]):
                self.reader.problem(table.marks[name], f"{key}.{name}", NOT_SUPPORTED_TEXT)
        if "injectDefaults" in table.entries and as_bool(table.entries["injectDefaults"]) is None:
            self.reader.problem(table.marks["injectDefaults"], f"{key}.injectDefaults", "write true or false")
        for path, item in self.reader.items(table.entries.get("sources"), f"{key}.sources"):
            source = self.reader.mapping(item, path)
            if source is None:
                continue
            self.reader.known(source, path, ("pluginRef", "interval", "extractors"))
            plugin = self._plugin_of(path, source)
            if plugin is not None and plugin.role not in {"source", ""}:
                self.reader.problem(
                    source.mark, f"{path}.pluginRef", f"{plugin.spec.type} is not a source; write the name of one"
                )
            elif plugin is not None and "interval" in source.entries:
                interval = self.reader.value(source, path, "interval", SOURCE_INTERVAL)
                if interval is not None:
                    self._interval(plugin.spec.type, interval, f"{path}.interval", source.marks["interval"])
            for extractor, entry in self.reader.items(source.entries.get("extractors"), f"{path}.extractors"):
                self._reference(extractor, entry, "extractor")

    def _interval(self, type_: str, interval: float, path: str, mark: Mark) -> None:
        if type_ == "metrics-data-source":
            self.set("scrape.interval", interval, path, mark)
            return
        if interval < MIN_MODELS_INTERVAL:
            least = show_duration(MIN_MODELS_INTERVAL)
            self.note(f"{path}: models change too rarely for this; {least} is used")
        self.set("scrape.modelsInterval", max(interval, MIN_MODELS_INTERVAL), path, mark)
