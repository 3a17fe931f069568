"""Engines as data: the sources of a configured engine's signals, and the label of a pod that names its engine.

A metric specification is `name`, or `name{label=value,...}` for series with these labels, as in `engineConfigs` of the
plugin `core-metrics-extractor` of llm-d's router 0.10. It names a gauge, a counter, or an info sample.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

# The label of a pod that names its engine: llm-d's, and the older one of the Gateway API Inference Extension.
ENGINE_LABELS: Final = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
# The engine is recognised by the names of its metrics.
AUTO: Final = "auto"
MAX_SPEC: Final = 1000  # characters

Labels = tuple[tuple[str, str], ...]


class MetricSpec(NamedTuple):
    """A source of a signal: the sample, the labels of its series, and the label that holds the value (empty: the
    sample's value)."""

    signal: str
    sample: str
    where: Labels = ()
    label: str = ""


class EngineSpec(NamedTuple):
    """A configured engine: its name and the sources of its signals, in order of preference for each signal."""

    name: str
    metrics: tuple[MetricSpec, ...]


_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PAIR: Final = re.compile(r"\s*([^\s={},\"]+)\s*=\s*(?:\"((?:[^\"\\]|\\[\\\"n])*)\"|([^\s={},\"]*))\s*(?:,|\Z)")
_ESCAPED: Final = re.compile(r"\\(.)")
_EXAMPLE: Final = "write a name, or name{label=value}, such as nv_trt_llm_request_metrics{request_type=waiting}"


def parse_spec(text: str) -> tuple[str, Labels]:
    """The sample's name and the labels of its series. Raises ValueError with what is wrong; what to write."""
    if len(text) > MAX_SPEC:
        raise ValueError(f"a specification of {len(text)} characters; write at most {MAX_SPEC}")
    name, brace, rest = text.strip().partition("{")
    name, rest = name.strip(), rest.rstrip()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_quoted(name)} is not a metric name; {_EXAMPLE}")
    if not brace:
        return name, ()
    if not rest.endswith("}"):
        raise ValueError(f"the labels of {name} have no closing brace; write {name}{{label=value}}")
    return name, _labels(name, rest[:-1])


def _labels(name: str, text: str) -> Labels:
    found: dict[str, str] = {}
    at = 0
    while text[at:].strip():
        pair = _PAIR.match(text, at)
        if pair is None:
            raise ValueError(
                f"{_quoted(text[at:].strip())} is not a label of {name}; write label=value, separated by commas"
            )
        label, quoted, plain = pair[1], pair[2], pair[3]
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{_quoted(label)} is not a label name; write letters, digits and _")
        if label in found:
            raise ValueError(f"duplicate label {label} of {name}; keep one")
        found[label] = (
            plain if quoted is None else _ESCAPED.sub(lambda each: "\n" if each[1] == "n" else each[1], quoted)
        )
        at = pair.end()
    if not found:
        raise ValueError(f"{name}{{}} has no label; write {name}")
    return tuple(sorted(found.items()))


def is_label(text: str) -> bool:
    """Whether this is a valid label name."""
    return _LABEL.fullmatch(text) is not None


def engine_by_label(labels: Mapping[str, str], keys: Sequence[str] = ENGINE_LABELS) -> tuple[str, str] | None:
    """The first of `keys` that is set, with its value: the engine's name. None where none is set."""
    return next(((key, labels[key]) for key in keys if labels.get(key)), None)


def _quoted(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
