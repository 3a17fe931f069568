"""Writes a rendered configuration as readable YAML: block style, in the order of the data, without anchors.

It supports what the renderer uses: mappings with text keys, lists, printable text, integers, booleans and null.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

# Text that YAML reads as text without quotes; all other text is written as JSON, a subset of YAML.
_PLAIN: Final = re.compile(r"[A-Za-z_/@%][A-Za-z0-9_./@%-]*( [A-Za-z0-9_./@%-]+)*")
_RESERVED: Final = frozenset({"true", "false", "null", "yes", "no", "on", "off", "y", "n"})


def dump(data: Any) -> str:
    """The data as a YAML document that ends with a newline."""
    return "\n".join(_lines(data)) + "\n"


def _lines(data: Any) -> Iterator[str]:
    if isinstance(data, dict) and data:
        for key, value in data.items():
            if isinstance(value, dict | list) and value:
                yield f"{_scalar(key)}:"
                yield from (f"  {line}" for line in _lines(value))
            else:
                yield f"{_scalar(key)}: {_scalar(value)}"
    elif isinstance(data, list) and data:
        for item in data:
            first, *rest = _lines(item)
            yield f"- {first}"
            yield from (f"  {line}" for line in rest)
    else:
        yield _scalar(data)


def _scalar(value: Any) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _RESERVED and value[0] not in "%@":
        return value
    return json.dumps(value, ensure_ascii=False)
