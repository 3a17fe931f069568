"""A validator of JSON Schema as editors have one, and the schema of the configuration file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import jsonschema

from agent.app.vocabulary import VOCABULARY
from agent.config.document import compose
from agent.config.nodes import plain
from agent.config.schema import json_schema


def _pattern(validator: Any, text: str, instance: object, schema: object) -> Iterator[jsonschema.ValidationError]:
    """The keyword as ECMA 262 defines it: `$` is the end of the text, in Python `\\Z`."""
    if isinstance(instance, str) and not re.search(text.replace("$", r"\Z"), instance):
        yield jsonschema.ValidationError(f"{instance!r} does not match {text!r}")


VALIDATOR = jsonschema.validators.extend(jsonschema.Draft202012Validator, {"pattern": _pattern})
SCHEMA = json_schema(VOCABULARY)


def data_of(text: str) -> object:
    """A document as data."""
    document = compose(text, [])
    return plain(document) if document is not None else None


def schema_problems(document: object) -> list[str]:
    """What the schema refuses of a document."""
    return [error.message for error in VALIDATOR(SCHEMA).iter_errors(document)]
