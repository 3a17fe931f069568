"""Any file is a configuration or is refused with a list of problems; nothing else is raised."""

from __future__ import annotations

import re

import yaml
from hypothesis import given
from hypothesis import strategies as st

from agent.app.vocabulary import VOCABULARY
from agent.config import parse
from agent.config.config import Config
from agent.config.epp.flow_control import NESTED_KEYS
from agent.config.epp.names import BUILT_IN, EPP_KEYS, NOT_SUPPORTED
from agent.config.flow_control import FAIRNESS_POLICIES, ORDERING_POLICIES
from agent.config.nodes import BadConfig
from agent.config.options import all_options

WORD = st.sampled_from(
    [
        *EPP_KEYS, *BUILT_IN[:6], *NOT_SUPPORTED[:6], *VOCABULARY.scorers, *VOCABULARY.filters,
        "pools", "endpoints", "pluginRef",
        *{part for path, _ in all_options(Config) for part in re.split(r"[.\[\]]+", path) if part},
        "weight", "type", "name", "parameters", "sources", "extractors", "parsers", "llm-d.ai/v1alpha1",
        *FAIRNESS_POLICIES, *ORDERING_POLICIES, *(key for keys in NESTED_KEYS.values() for key in keys), "1Gi", "5k",
        "EndpointPickerConfig", "1s", "500ms", "16MiB", "127.0.0.1:9002", "[::1]:80", "flowControl", "\ud800", "",
    ]
)  # fmt: skip
VALUE = st.recursive(
    st.one_of(WORD, st.text(max_size=8), st.integers(), st.floats(), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORD, inner, max_size=5)),
    max_leaves=20,
)


def parsed(text: str) -> bool:
    """Whether it is a configuration, or is refused with printable lines that name the file."""
    try:
        parse(text, "any.yaml", VOCABULARY)
    except BadConfig as refused:
        str(refused).encode()
        return bool(refused.problems) and all(line.startswith("any.yaml:") for line in refused.lines())
    return True


@given(st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    assert parsed(text)


@given(st.text(alphabet="{}[]:,-&*!?|>'\"%@#~\n \tab01.\\xuU", max_size=60))
def test_any_punctuation_is_parsed_or_refused(text: str) -> None:
    assert parsed(text)


@given(st.dictionaries(WORD, VALUE, max_size=8))
def test_any_data_under_known_keys_is_parsed_or_refused(data: dict[str, object]) -> None:
    document = {"apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig", **data}
    assert parsed(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))


@given(st.binary(max_size=200))
def test_a_good_file_with_any_bytes_behind_it_is_parsed_or_refused(tail: bytes) -> None:
    assert parsed(f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n{tail.decode('latin-1')}")
