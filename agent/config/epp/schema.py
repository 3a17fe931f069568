"""The JSON Schema of the EPP part of a document, as far as the agent accepts it."""

from __future__ import annotations

from typing import Any, Final

from agent.config.epp.document import MAX_WEIGHT, NOT_SUPPORTED_KEYS, SOURCE_INTERVAL
from agent.config.epp.flow_control import DETECTOR_SECTION, NESTED_KEYS, SECTION, THRESHOLDS, USAGE_LIMIT
from agent.config.epp.names import API_VERSIONS, BUILT_IN, GATES_BUILT_IN, GATES_NOT_SUPPORTED, KIND, RENAMED
from agent.config.epp.parameters import PARAMETERS
from agent.config.values import Boolean, Name, Number
from agent.config.vocabulary import Vocabulary

_REFERENCE: Final = {"type": ["string", "number", "boolean"], "description": "The name of an entry of plugins."}
_OPTIONAL_REFERENCE: Final = {
    "type": ["string", "number", "boolean", "null"],
    "description": "The name of an entry of plugins, or its type.",
}
_NOT_SUPPORTED: Final = {"type": "null", "description": "Not supported yet."}


def _object(properties: dict[str, Any], *required: str, optional: bool = False, **more: Any) -> dict[str, Any]:
    """An object with these keys and no others; `optional`: or null."""
    schema: dict[str, Any] = {"type": ["object", "null"] if optional else "object", **more}
    schema |= {"additionalProperties": False, "properties": properties}
    return schema | ({"required": list(required)} if required else {})


def _list(items: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": ["array", "null"], "description": description, "items": items}


def _plugin(vocabulary: Vocabulary) -> dict[str, Any]:
    """An entry of `plugins`: its type, and for each type with parameters of the table, these."""
    types = sorted({*BUILT_IN, *vocabulary.filters, *vocabulary.scorers, *RENAMED})
    conditions = []
    for type_ in types:
        name = RENAMED.get(type_, type_)
        rules = {key: dict(rule.schema) for key, rule in PARAMETERS.get(name, {}).items()}
        if not rules and name not in BUILT_IN:
            continue  # the parameters of the agent's own filters and scorers are checked by these
        parameters: dict[str, Any] = {"properties": rules}
        if name in BUILT_IN:
            parameters["additionalProperties"] = False
        conditions.append(
            {
                "if": {"required": ["type"], "properties": {"type": {"const": type_}}},
                "then": {"properties": {"parameters": parameters}},
            }
        )
    properties = {
        "type": {"enum": types, "description": "What the plugin is."},
        "name": {**Name().schema(), "description": "What profiles refer to. Default: the type."},
        "parameters": {"type": ["object", "null"], "description": "The plugin's parameters."},
    }
    return _object(properties, "type", allOf=conditions)


def _gates() -> dict[str, Any]:
    on_off = "(?:[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee])"
    off = "[Ff][Aa][Ll][Ss][Ee]"
    pattern = f"^(?:(?:{'|'.join(GATES_BUILT_IN)})(?:={on_off})?|(?:{'|'.join(GATES_NOT_SUPPORTED)})={off})$"
    return _list({"type": "string", "pattern": pattern}, "Feature gates: NAME or NAME=false.")


def epp_properties(vocabulary: Vocabulary) -> dict[str, Any]:
    """The properties of the EPP part."""
    references = _object({"pluginRef": _REFERENCE}, "pluginRef")
    weighted = _object(
        {
            "pluginRef": _REFERENCE,
            "weight": {**Number(0, MAX_WEIGHT).schema(), "default": 1, "description": "The weight of a scorer."},
        },
        "pluginRef",
    )
    profile = _object(
        {
            "name": {**Name().schema(), "description": "The profile's name."},
            "plugins": _list(weighted, "Filters in order, scorers and a picker."),
        },
        "name",
    )
    source = _object(
        {
            "pluginRef": _REFERENCE,
            "interval": SOURCE_INTERVAL.schema(),
            "extractors": _list(references, "The source's extractors."),
        },
        "pluginRef",
    )
    data_layer = _object(
        {
            "injectDefaults": Boolean().schema(),
            "sources": _list(source, "Data sources."),
            **dict.fromkeys(NOT_SUPPORTED_KEYS, _NOT_SUPPORTED),
        },
        optional=True,
        description="Where readings come from.",
    )
    return {
        "apiVersion": {"enum": list(API_VERSIONS)},
        "kind": {"enum": [KIND]},
        "featureGates": _gates(),
        "plugins": _list(_plugin(vocabulary), "Filters, scorers and other plugins."),
        "schedulingProfiles": _list(profile, "Profiles besides the built-in ones."),
        "dataLayer": data_layer,
        "data": data_layer | {"description": "The old name of dataLayer."},
        "requestHandler": _object(
            {"parsers": _list(references, "Parsers of request bodies.")},
            optional=True,
            description="How request bodies are parsed.",
        ),
        "parser": _object({"pluginRef": _REFERENCE}, "pluginRef", optional=True, description="A parser."),
        "saturationDetector": _object(
            {
                "pluginRef": _OPTIONAL_REFERENCE,
                **{name: dict(PARAMETERS["utilization-detector"][name].schema) for name in THRESHOLDS},
            },
            optional=True,
            description="The old place of flowControl.saturationDetector.",
        ),
    }


def nested_properties() -> dict[str, dict[str, Any]]:
    """The properties of the EPP part within sections of the agent, by the path of the section."""
    priority = {"description": "No effect: the limits are those of several priorities."}
    found: dict[str, dict[str, Any]] = {
        SECTION: {
            "enableEviction": {"enum": [False, None], "description": "A request that was sent is not ended."},
            "usageLimitPolicyPluginRef": _OPTIONAL_REFERENCE | {"description": f"Only {USAGE_LIMIT}."},
        },
        DETECTOR_SECTION: {"pluginRef": _OPTIONAL_REFERENCE},
    }
    return {section: found.get(section, {"priority": priority}) for section in NESTED_KEYS}
