"""The part of the document that the field defines: plugins, scheduling profiles, data layer, feature gates.

An EndpointPickerConfig file loads as it is. Plugins that filter and score become a `ProfileSpec`; what other plugins
ask for is built in here, so they are accepted, and those of their parameters that say something are carried over into
our own sections (`Found.settings`). A type or a feature that the field has and this version does not do is refused by
name: a picker that silently leaves out half of its rules is worse than one that does not start.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from agent.config.document import Mark, Node, Scalar, Table, as_bool, is_null, kind_of, plain
from agent.config.names import (
    API_VERSIONS,
    BUILT_IN,
    GATES_BUILT_IN,
    GATES_NOT_YET,
    KIND,
    NOT_YET,
    RENAMED,
    Vocabulary,
)
from agent.config.options import MIN_MODELS_INTERVAL
from agent.config.parameters import NOT_YET_SAYS, PARAMETERS
from agent.config.reading import Reader
from agent.config.values import Duration, Name, Number, Wrong, meant, quote, show_duration
from agent.engine_specs import EngineSpec
from agent.profiles import PluginSpec, ProfileSpec


class Setting(NamedTuple):
    """A value for one of our own sections that stands in the field's part of the document."""

    value: Any
    mark: Mark
    key: str


@dataclass(slots=True)
class Found:
    """What the field's part of the document says."""

    profiles: dict[str, ProfileSpec] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)  # "prefixIndex.blockTokens" -> setting
    engines: dict[str, EngineSpec] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class _Plugin(NamedTuple):
    spec: PluginSpec
    role: str
    mark: Mark


def read(document: Table, reader: Reader, words: Vocabulary | None) -> Found:
    """The field's part of the document; problems go to the reader."""
    return _FieldPart(reader, words).read(document)


class _FieldPart:
    def __init__(self, reader: Reader, words: Vocabulary | None) -> None:
        self.reader = reader
        self.words = words
        self.found = Found()
        self.plugins: dict[str, _Plugin] = {}

    def read(self, document: Table) -> Found:
        """All of it; problems go to the reader."""
        entries, reader = document.entries, self.reader
        for key, valid in (("apiVersion", API_VERSIONS), ("kind", (KIND,))):
            if key not in entries:
                reader.wrong(document.mark, key, f"missing; write {key}: {valid[0]}")
            else:
                reader.value(document, "", key, Name(valid))
        gates = self._gates(entries.get("featureGates"))
        for key, node in reader.items(entries.get("plugins"), "plugins"):
            self._plugin(key, node)
        for key, node in reader.items(entries.get("schedulingProfiles"), "schedulingProfiles"):
            self._profile(key, node)
        for key in ("dataLayer", "data"):
            self._data_layer(entries.get(key), key)
        handler = reader.table(entries.get("requestHandler"), "requestHandler")
        if handler is not None:
            reader.known(handler, "requestHandler", ("parsers",))
            for key, node in reader.items(handler.entries.get("parsers"), "requestHandler.parsers"):
                self._reference(key, node, "parser")
        if "parser" in entries and not is_null(entries["parser"]):
            self._reference("parser", entries["parser"], "parser")
        if "saturationDetector" in entries and not is_null(entries["saturationDetector"]):
            reader.wrong(document.marks["saturationDetector"], "saturationDetector", NOT_YET_SAYS)
        if "flowControl" in entries and not is_null(entries["flowControl"]) and not gates:
            self.found.notes.append("flowControl: without effect, as its feature gate is off")
        return self.found

    def _gates(self, node: Node | None) -> bool:
        """Read the feature gates; True when one is on that we refuse."""
        refused = False
        for key, item in self.reader.items(node, "featureGates"):
            text = item.text if isinstance(item, Scalar) else ""
            name, written, value = text.partition("=")
            if written and value.lower() not in {"true", "false"}:
                self.reader.wrong(item.mark, key, f"{quote(text)} is neither on nor off; write {name} or {name}=false")
            elif name in GATES_NOT_YET:
                if value.lower() == "false":
                    continue
                refused = True
                self.reader.wrong(item.mark, key, f"{name} {NOT_YET_SAYS}")
            elif name not in GATES_BUILT_IN:
                self.reader.wrong(
                    item.mark,
                    key,
                    f"{quote(text)} is no feature gate; {meant(name, (*GATES_BUILT_IN, *GATES_NOT_YET))}",
                )
        return refused

    # -- plugins ---------------------------------------------------------------------------------------------------

    def _plugin(self, key: str, node: Node) -> None:
        table = self.reader.table(node, key)
        if table is None:
            return
        self.reader.known(table, key, ("name", "type", "parameters"))
        kind = table.entries.get("type")
        if kind is None or is_null(kind) or not isinstance(kind, Scalar):
            said = "missing" if kind is None else f"{kind_of(kind)} is no type"
            self.reader.wrong(table.mark, f"{key}.type", f"{said}; write the plugin's type, such as queue-scorer")
            return
        type_ = RENAMED.get(kind.text, kind.text)
        name = kind.text
        if "name" in table.entries:
            name = self.reader.value(table, key, "name", Name()) or kind.text
        if name in self.plugins:
            first = self.plugins[name].mark
            self.reader.wrong(
                table.mark,
                key,
                f"a second plugin named {quote(name)}, the first is on line {first}; give one of them a name:",
            )
            return
        role = self._role(type_)
        if role == "":
            self.reader.wrong(kind.mark, f"{key}.type", self._unknown(type_))
        parameters = self.reader.table(table.entries.get("parameters"), f"{key}.parameters")
        left = self._carry(type_, f"{key}.parameters", parameters) if parameters is not None and role else {}
        spec = PluginSpec(type_, name, left)
        self.plugins[name] = _Plugin(spec, role, table.mark)
        if role in {"filter", "scorer"} and self.words is not None:
            bad = self.words.check(type_, left)
            if bad is not None:
                self.reader.wrong_at(f"{key}.parameters.{bad[0]}", bad[1])

    def _role(self, type_: str) -> str:
        if type_ in BUILT_IN:
            return type_.rpartition("-")[2]
        if self.words is None:
            kind = type_.rpartition("-")[2]
            return kind if kind in {"filter", "scorer"} and type_ not in NOT_YET else ""
        return "filter" if type_ in self.words.filters else "scorer" if type_ in self.words.scorers else ""

    def _unknown(self, type_: str) -> str:
        if type_ in NOT_YET:
            return f"{type_} {NOT_YET_SAYS}"
        ours = (*self.words.filters, *self.words.scorers) if self.words else ()
        return f"{quote(type_)} is no plugin type; {meant(type_, sorted((*BUILT_IN, *ours)))}"

    def _carry(self, type_: str, key: str, parameters: Table) -> dict[str, object]:
        """The parameters that are the plugin's own; the others were understood here."""
        rules = PARAMETERS.get(type_, {})
        left: dict[str, object] = {}
        # Engines first: another parameter may name one that stands behind it.
        for name, node in sorted(parameters.entries.items(), key=lambda entry: entry[0] != "engineConfigs"):
            path = f"{key}.{name}"
            self.reader.marks[path] = parameters.marks[name]
            rule = rules.get(name)
            if rule is not None:
                try:
                    rule(self, type_, path, node)
                except Wrong as wrong:
                    self.reader.wrong(node.mark, path, str(wrong))
            elif type_ in BUILT_IN:
                what = f"unknown parameter; {meant(name, sorted(rules))}" if rules else "takes no parameters; remove it"
                self.reader.wrong(parameters.marks[name], path, what)
            else:
                left[name] = plain(node)
        return left

    @property
    def engines(self) -> tuple[str, ...] | None:
        """The engines that there are, configured ones included; None where any name passes."""
        return (*self.words.engines, *self.found.engines) if self.words is not None else None

    def add_engine(self, engine: EngineSpec) -> None:
        """An engine that the file tells."""
        self.found.engines[engine.name] = engine

    def note(self, what: str) -> None:
        """Something that was read and is not as written."""
        self.found.notes.append(what)

    def set(self, option: str, value: Any, path: str, mark: Mark) -> None:
        """A value for one of our own sections; two places that differ are refused."""
        first = self.found.settings.setdefault(option, Setting(value, mark, path))
        if first.value != value:
            self.reader.wrong(mark, path, f"{first.key} on line {first.mark} says otherwise; keep one of them")

    # -- what refers to plugins ------------------------------------------------------------------------------------

    def _referred(self, key: str, table: Table) -> _Plugin | None:
        node = table.entries.get("pluginRef")
        if not isinstance(node, Scalar) or is_null(node):
            said = "missing" if node is None else f"{kind_of(node)} is no name"
            self.reader.wrong(table.mark, f"{key}.pluginRef", f"{said}; write the name of an entry of plugins")
            return None
        plugin = self.plugins.get(node.text)
        if plugin is None:
            there = meant(node.text, sorted(self.plugins)) if self.plugins else "write it there"
            self.reader.wrong(node.mark, f"{key}.pluginRef", f"{quote(node.text)} is no entry of plugins; {there}")
        return plugin

    def _reference(self, key: str, node: Node, role: str) -> None:
        """A reference to a plugin of this role and nothing more."""
        table = self.reader.table(node, key)
        if table is None:
            return
        self.reader.known(table, key, ("pluginRef",))
        plugin = self._referred(key, table)
        if plugin is not None and plugin.role not in {role, ""}:
            self.reader.wrong(table.mark, f"{key}.pluginRef", f"{plugin.spec.type} is no {role}; name one")

    def _profile(self, key: str, node: Node) -> None:
        table = self.reader.table(node, key)
        if table is None:
            return
        self.reader.known(table, key, ("name", "plugins"))
        if "name" not in table.entries:
            self.reader.wrong(table.mark, f"{key}.name", "missing; write the profile's name, such as default")
        name = self.reader.value(table, key, "name", Name()) or ""
        filters: list[PluginSpec] = []
        scorers: list[tuple[PluginSpec, float]] = []
        seen: set[str] = set()
        for path, item in self.reader.items(table.entries.get("plugins"), f"{key}.plugins"):
            entry = self.reader.table(item, path)
            if entry is None:
                continue
            self.reader.known(entry, path, ("pluginRef", "weight"))
            weight = self.reader.value(entry, path, "weight", Number(0, 1e6)) if "weight" in entry.entries else None
            plugin = self._referred(path, entry)
            if plugin is None or plugin.role == "":
                continue
            if plugin.spec.name in seen:
                self.reader.wrong(entry.mark, path, f"{quote(plugin.spec.name)} stands twice in this profile; keep one")
            seen.add(plugin.spec.name)
            if plugin.role == "filter":
                filters.append(plugin.spec)
            elif plugin.role == "scorer":
                scorers.append((plugin.spec, 1.0 if weight is None else weight))
            elif plugin.role != "picker":
                self.reader.wrong(
                    entry.mark,
                    path,
                    f"{plugin.spec.type} has no place in a profile; name filters, scorers and a picker",
                )
            if weight is not None and plugin.role != "scorer":
                self.found.notes.append(f"{path}.weight: without effect, as {plugin.spec.type} is no scorer")
        if not scorers and not any(problem.key.startswith((key, "plugins")) for problem in self.reader.problems):
            self.reader.wrong(table.mark, key, "no scorer in this profile; add the pluginRef of at least one")
        if name in self.found.profiles:
            self.reader.wrong(table.mark, f"{key}.name", f"a second profile named {quote(name)}; give it another name")
        elif name:
            self.found.profiles[name] = ProfileSpec(name, tuple(filters), tuple(scorers))

    def _data_layer(self, node: Node | None, key: str) -> None:
        table = self.reader.table(node, key)
        if table is None:
            return
        not_yet = ("discovery", "peerDiscovery", "crossReplicaSyncerPluginRef", "crossReplicaSyncInterval")
        self.reader.known(table, key, ("injectDefaults", "sources", *not_yet))
        for name in not_yet:
            if name in table.entries and not is_null(table.entries[name]):
                self.reader.wrong(table.marks[name], f"{key}.{name}", NOT_YET_SAYS)
        if "injectDefaults" in table.entries and as_bool(table.entries["injectDefaults"]) is None:
            self.reader.wrong(table.marks["injectDefaults"], f"{key}.injectDefaults", "write true or false")
        for path, item in self.reader.items(table.entries.get("sources"), f"{key}.sources"):
            source = self.reader.table(item, path)
            if source is None:
                continue
            self.reader.known(source, path, ("pluginRef", "interval", "extractors"))
            plugin = self._referred(path, source)
            if plugin is not None and plugin.role not in {"source", ""}:
                self.reader.wrong(source.mark, f"{path}.pluginRef", f"{plugin.spec.type} is no source; name one")
            elif plugin is not None and "interval" in source.entries:
                interval = self.reader.value(source, path, "interval", Duration(0.05, 3600))
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
            self.note(f"{path}: models change too rarely to be asked for so often, {least} is used")
        self.set("scrape.modelsInterval", max(interval, MIN_MODELS_INTERVAL), path, mark)
