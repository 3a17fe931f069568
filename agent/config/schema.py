"""The JSON Schema of the configuration file: docs/config.schema.json, for editors and other tools.

It is draft 2020-12. It describes the document as a YAML parser reads it, and accepts every file that the agent accepts.
What a schema cannot say (the range of a duration, combinations of options, references) is left to `igw check`.
"""

from __future__ import annotations

from typing import Any, Final

from agent.config.config import Config
from agent.config.epp.schema import epp_properties, nested_properties
from agent.config.options import MISSING, Option, Section, options, rows
from agent.config.vocabulary import Vocabulary

ID: Final = "urn:inference-gateway-agent:config"


def json_schema(vocabulary: Vocabulary) -> dict[str, Any]:
    """The schema of a configuration file."""
    properties = {**epp_properties(vocabulary), **_properties(Config, vocabulary)}
    for path, more in nested_properties().items():
        section: dict[str, Any] = {"properties": properties}
        for part in path.split("."):
            section = section["properties"][part]
        section["properties"] |= more
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": ID,
        "title": "Configuration of the inference gateway agent",
        "description": "An EndpointPickerConfig document with the agent's own sections. Generated: igw check --schema",
        "type": "object",
        "additionalProperties": False,
        "required": ["apiVersion", "kind"],
        "properties": properties,
    }


def _properties(section: type, vocabulary: Vocabulary) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for row in rows(section):
        if isinstance(row, Option):
            found[row.key] = _option(row, vocabulary)
        elif isinstance(row, Section):
            found[row.key] = _section(row.type, vocabulary, ["object", "null"], row.meaning)
        else:
            entry = _section(row.type, vocabulary, "object")
            if row.shorthand:
                short = next(option.type.schema() for option in options(row.type) if option.key == row.shorthand)
                entry = {"anyOf": [short, entry]}
            found[row.key] = {"type": ["array", "null"], "description": row.meaning, "items": entry}
    return found


def _section(section: type, vocabulary: Vocabulary, type_: object, description: str = "") -> dict[str, Any]:
    required = [row.key for row in rows(section) if not isinstance(row, Section) and row.required]
    return {
        "type": type_,
        **({"description": description} if description else {}),
        "additionalProperties": False,
        "properties": _properties(section, vocabulary),
        **({"required": required} if required else {}),
    }


def _option(row: Option, vocabulary: Vocabulary) -> dict[str, Any]:
    """The schema of an option's value, with its meaning, its range and its default."""
    schema = row.type.schema()
    sentences = [f"{row.meaning[0].upper()}{row.meaning[1:]}.", schema.pop("description", "")]
    words = row.default_text or row.unset
    if words:
        sentences.append(f"Default: {words}.")
    elif row.default is not MISSING:
        schema["default"] = row.type.written(row.default)
    if not row.live:
        sentences.append("A change needs a restart.")
    if row.vocabulary:
        names: tuple[str, ...] = getattr(vocabulary, row.vocabulary)
        # The file may define engines, hence other names are valid too.
        schema |= {"examples": list(names)} if row.vocabulary == "engines" else {"enum": list(names)}
    return {"description": " ".join(filter(None, sentences)), **schema}
