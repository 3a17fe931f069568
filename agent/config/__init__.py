"""The configuration: an EndpointPickerConfig document with the agent's own sections, or the same from flags.

`document` makes nodes of the text; `epp` and `reader` make the EPP part and the agent's sections of the nodes; `checks`
checks combinations of options. Every problem is reported at once. The result is frozen and complete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agent.config.checks import check
from agent.config.config import Config
from agent.config.document import compose
from agent.config.epp.document import read_epp
from agent.config.epp.flow_control import NESTED_KEYS
from agent.config.epp.names import API_VERSIONS, EPP_KEYS, KIND
from agent.config.flow_control import with_policies
from agent.config.flow_control_checks import check_flow_control, flow_control_notes
from agent.config.nodes import BadConfig, MappingNode, Node, Problem, ScalarNode, SequenceNode
from agent.config.reader import DocumentReader
from agent.config.vocabulary import Vocabulary
from agent.profiles import PRESETS


def parse(text: str, name: str, vocabulary: Vocabulary | None = None) -> Config:
    """The configuration in a text; `name` identifies it in messages. Raises `BadConfig`.

    Without a vocabulary any well-formed name of an engine or a plugin is valid.
    """
    problems: list[Problem] = []
    document = compose(text, problems)
    if document is None:
        raise BadConfig(name, problems)
    return _interpret(document, name, problems, vocabulary)


def from_flags(
    endpoints: Sequence[str],
    *,
    vocabulary: Vocabulary | None = None,
    pool: str | None = None,
    engine: str | None = None,
    profile: str | None = None,
    scrape_interval: str | None = None,
    ext_proc_address: str | None = None,
    admin_address: str | None = None,
    eds_directory: str | None = None,
) -> Config:
    """The configuration of `igw run --endpoints ...`: the same document, the same checks. Raises `BadConfig`."""

    def mapping(flags: dict[str, tuple[str, str | None]], **more: Node) -> MappingNode:
        given = {key: ScalarNode(flag, text) for key, (flag, text) in flags.items() if text is not None}
        entries: dict[str, Node] = {**given, **more}
        return MappingNode("--endpoints", entries, {key: node.mark for key, node in entries.items()})

    addresses = SequenceNode("--endpoints", [ScalarNode("--endpoints", text) for text in endpoints])
    one = mapping(
        {
            "name": ("--pool", pool),
            "engine": ("--engine", engine),
            "profile": ("--profile", profile),
            "extProcAddress": ("--ext-proc-address", ext_proc_address),
        },
        endpoints=addresses,
    )
    document = mapping(
        {"apiVersion": ("", API_VERSIONS[0]), "kind": ("", KIND)},
        pools=SequenceNode("--endpoints", [one]),
        scrape=mapping({"interval": ("--scrape-interval", scrape_interval)}),
        envoy=mapping({"edsDirectory": ("--eds-directory", eds_directory)}),
        admin=mapping({"address": ("--admin-address", admin_address)}),
    )
    return _interpret(document, "flags", [], vocabulary)


def _interpret(document: MappingNode, name: str, problems: list[Problem], vocabulary: Vocabulary | None) -> Config:
    reader = DocumentReader(problems, {"": EPP_KEYS, **NESTED_KEYS})
    epp = read_epp(document, reader, vocabulary)
    fields = reader.section(Config, document, "", epp)
    fields["flow_control"] = with_policies(fields["flow_control"], epp.plugin_types)
    config = Config(
        source=name,
        profiles={**PRESETS, **epp.profiles},
        engines=tuple(epp.engines.values()),
        engine_labels=epp.engine_labels,
        notes=tuple(epp.notes),
        **fields,
    )
    check(config, reader, vocabulary)
    check_flow_control(config, reader)
    if problems:
        raise BadConfig(
            name, sorted(problems, key=lambda problem: problem.mark if isinstance(problem.mark, int) else 0)
        )
    return replace(config, notes=(*config.notes, *flow_control_notes(config)))
