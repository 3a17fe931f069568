"""Engines as data: where a configured engine's signals come from, and which label of a pod names its engine.

A metric specification is the field's: `name`, or `name{label=value,...}` where a series must carry labels. It names a
gauge or a counter, or a label of an info sample. The words are those of llm-d's router 0.10 (`engineConfigs` of the
plugin `core-metrics-extractor`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

# The label of a pod that names its engine: llm-d's, and the one of the Gateway API Inference Extension before it.
ENGINE_LABELS: Final = ("llm-d.ai/engine-type", "inference.networking.k8s.io/engine-type")
# The word for an engine that is recognised by its page.
AUTO: Final = "auto"
MAX_SPEC: Final = 1000  # characters

Labels = tuple[tuple[str, str], ...]


class MetricSpec(NamedTuple):
    """One source of a signal: the sample, the labels that its series must carry, and the label that holds the value
    (empty: the sample's value)."""

    signal: str
    sample: str
    where: Labels = ()
    label: str = ""


class EngineSpec(NamedTuple):
    """A configured engine: its name, and the sources of its signals, those of one signal in the order of preference."""

    name: str
    metrics: tuple[MetricSpec, ...]


_NAME: Final = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PAIR: Final = re.compile(r"\s*([^\s={},\"]+)\s*=\s*(?:\"((?:[^\"\\]|\\[\\\"n])*)\"|([^\s={},\"]*))\s*(?:,|\Z)")
_ESCAPED: Final = re.compile(r"\\(.)")
_SUCH_AS: Final = "write a name, or name{label=value}, such as nv_trt_llm_request_metrics{request_type=waiting}"


def parse_spec(text: str) -> tuple[str, Labels]:
    """The sample's name and the labels that its series must carry. ValueError says what is wrong; what to write."""
    if len(text) > MAX_SPEC:
        raise ValueError(f"a specification of {len(text)} characters; write at most {MAX_SPEC}")
    name, brace, rest = text.strip().partition("{")
    name, rest = name.strip(), rest.rstrip()
    if not _NAME.fullmatch(name):
        raise ValueError(f"{_shown(name)} is no name of a metric; {_SUCH_AS}")
    if not brace:
        return name, ()
    if not rest.endswith("}"):
        raise ValueError(f"the labels of {name} have no end; write {name}{{label=value}}")
    return name, _labels(name, rest[:-1])


def _labels(name: str, text: str) -> Labels:
    found: dict[str, str] = {}
    at = 0
    while text[at:].strip():
        pair = _PAIR.match(text, at)
        if pair is None:
            raise ValueError(
                f"{_shown(text[at:].strip())} is no label of {name}; write label=value, with a comma between two"
            )
        label, quoted, plain = pair[1], pair[2], pair[3]
        if not _LABEL.fullmatch(label):
            raise ValueError(f"{_shown(label)} is no name of a label; write letters, digits and _")
        if label in found:
            raise ValueError(f"the label {label} of {name} stands twice; keep one")
        found[label] = (
            plain if quoted is None else _ESCAPED.sub(lambda each: "\n" if each[1] == "n" else each[1], quoted)
        )
        at = pair.end()
    if not found:
        raise ValueError(f"{name}{{}} names no label; write {name}")
    return tuple(sorted(found.items()))


def is_label(text: str) -> bool:
    """Whether a sample can have a label of this name."""
    return _LABEL.fullmatch(text) is not None


def engine_by_label(labels: Mapping[str, str], keys: Sequence[str] = ENGINE_LABELS) -> tuple[str, str] | None:
    """The label that names the engine and what it says, by the first of `keys` that is there; None where none is."""
    return next(((key, labels[key]) for key in keys if labels.get(key)), None)


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
