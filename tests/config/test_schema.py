"""docs/config.schema.json is generated, valid, and agrees with the reader.

It accepts what the reader accepts: conftest.py checks that with every configuration of this folder's tests. For one
option it refuses what the reader refuses, except what a schema cannot express: ranges of durations and of sizes with a
unit, IPv6 addresses, printable characters, and the text of an unquoted number or truth value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from agent.app.vocabulary import VOCABULARY
from agent.commands import check
from agent.config import parse
from agent.config.addresses import Address, AddressTemplate, HostName
from agent.config.config import Config
from agent.config.document import compose
from agent.config.nodes import BadConfig, Node, plain
from agent.config.options import MISSING, Option, all_options
from agent.config.values import Duration, FilePath, InvalidValue, OptionType, Size
from tests.config.test_bad_files import BAD
from tests.config.validation import SCHEMA, VALIDATOR, data_of, schema_problems

ROOT = Path(__file__).resolve().parents[2]


def test_the_published_schema_is_the_one_that_the_program_prints() -> None:
    published = (ROOT / "docs/config.schema.json").read_text(encoding="utf-8")
    assert published == check.schema() + "\n", "igw check --schema > docs/config.schema.json"


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    from agent.__main__ import main

    assert main(["check", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == SCHEMA


def test_the_schema_is_valid_and_describes_every_key() -> None:
    VALIDATOR.check_schema(SCHEMA)
    for path, _ in all_options(Config):
        assert schema_of(path)["description"]


def schema_of(path: str) -> dict[str, Any]:
    """The schema of an option."""
    found: Any = SCHEMA
    for part in path.split("."):
        found = found["properties"][part.removesuffix("[]")]
        if part.endswith("[]"):
            found = found["items"]
            found = found.get("anyOf", [None, found])[1]
    return dict(found)


def documents() -> Iterator[Any]:
    """The examples of the repository, and the documents in its documentation, that the reader accepts."""
    for file in sorted((ROOT / "deploy/examples").glob("*.yaml")):
        yield pytest.param(file.read_text(encoding="utf-8"), id=file.name)
    for file in sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"]):
        blocks = re.findall(
            r"^```yaml(?! file=refused)[^\n]*\n(.*?)^```$", file.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        for number, text in enumerate(blocks):
            if "kind: EndpointPickerConfig" in text:
                yield pytest.param(text, id=f"{file.name}-{number}")


@pytest.mark.parametrize("text", list(documents()))
def test_the_schema_and_the_reader_agree_on_every_document(text: str) -> None:
    problems = schema_problems(data_of(text))
    try:
        parse(text, "x", VOCABULARY)
    except BadConfig as refused:
        unknown = any("unknown key" in problem.what for problem in refused.problems)
        assert bool(problems) == unknown
    else:
        assert problems == []


SINGLE = re.compile(
    "unknown key|is not a number|has no unit|is not a duration|out of range|is not valid; (did|valid)|neither"
)


@pytest.mark.parametrize("text", [text for text, problems in BAD.items() if SINGLE.search(str(problems))])
def test_the_schema_refuses_unknown_keys_wrong_types_numbers_out_of_range_and_unknown_words(text: str) -> None:
    assert schema_problems(data_of(text))


@pytest.mark.parametrize(("path", "option"), list(all_options(Config)))
def test_the_default_of_an_option_is_valid_by_its_schema_and_means_the_default(path: str, option: Option) -> None:
    schema = schema_of(path)
    if "default" in schema:
        assert VALIDATOR(schema).is_valid(schema["default"])
        assert read(option.type, node_of(schema["default"])) == option.default
    else:
        assert option.default_text or option.unset or option.default is MISSING


REFUSED = object()


def node_of(value: object) -> Node:
    """The value in a YAML document."""
    document = compose(yaml.safe_dump({"key": value}, allow_unicode=True, width=10_000), [])
    assert document is not None
    return document.entries["key"]


def read(type_: OptionType, node: Node) -> Any:
    """The value as the reader reads it, or `REFUSED`."""
    try:
        return type_.read(node)
    except InvalidValue:
        return REFUSED


TYPES = list({str(option.type): option.type for _, option in all_options(Config)}.values())
WORD = st.one_of(
    st.sampled_from(
        ["none", "true", "pod", "http", "json", "/metrics", "a:1", "a:0", "a:65536", "a:00080", "1.2.3.4:5", "1.2.3:5",
         "1.2.3.256:5", "1.2.3.4.:5", "01.2.3.4:5", "a-:1", "-a:1", "a..b:1", "a.:1", ":1", "a", "a:1/x", "http://a:1",
         "[::1]:80", "[::1]", "::1", "fe80::1%eth0", "[fe80::1%eth0]:80", "{node}:9400", "x{node}.y:1", "{node}:{node}",
         "llm/chat-0", "llm/", "1s", "1.5s", "1m30s", "16MiB", "16 MiB", "5", "1e3", "x\n", "é", " ", "a b"]
    ),
    st.text(max_size=70),
    st.text("abz09.-_:/[]%{}node ", max_size=70),
    st.from_regex(r"[0-9]{1,4}(\.[0-9])?(ms|s|m|h|KiB|Mi|GB| K|B)?", fullmatch=True),
    st.from_regex(r"[a-z0-9.]{1,6}:[0-9]{1,6}", fullmatch=True),
)  # fmt: skip
NUMBER = st.one_of(
    st.integers(), st.integers(-1, 20), st.sampled_from([63.0, 64.5, 65535, 65536, 1024, 1 << 40, 0.05, 1e-7, 1e300]),
    st.floats(allow_nan=False),
)  # fmt: skip
SCALAR = st.one_of(WORD, NUMBER, st.booleans(), st.none())
VALUE = st.one_of(
    SCALAR, st.lists(SCALAR, max_size=4), st.dictionaries(st.one_of(WORD, st.just("app")), SCALAR, max_size=3)
)


@given(st.sampled_from(TYPES), VALUE)
@example(HostName(), "fe80::1%eth0")
@example(AddressTemplate(), "{node}" * 40 + ":1")
def test_what_the_schema_of_an_option_refuses_the_reader_refuses(type_: OptionType, value: object) -> None:
    node = node_of(value)
    if not VALIDATOR(type_.schema()).is_valid(plain(node)):
        assert read(type_, node) is REFUSED


@given(st.sampled_from(TYPES), VALUE)
def test_what_the_reader_refuses_of_an_option_the_schema_refuses(type_: OptionType, value: object) -> None:
    node = node_of(value)
    if read(type_, node) is REFUSED and not beyond_a_schema(type_, plain(node)):
        assert not VALIDATOR(type_.schema()).is_valid(plain(node))


def beyond_a_schema(type_: OptionType, value: object) -> bool:
    """Whether it is one of the exceptions above."""
    if isinstance(value, list):
        return any(beyond_a_schema(type_, item) for item in value)
    if isinstance(value, dict):
        return any(beyond_a_schema(type_, item) for item in value.values())
    if isinstance(value, str):
        return (
            isinstance(type_, Duration | Size)
            or (isinstance(type_, FilePath) and not value.isprintable())
            or (isinstance(type_, Address | AddressTemplate | HostName) and value.count(":") > 1)
            or (isinstance(type_, AddressTemplate) and len(value) > 60)
        )
    return "string" in str(type_.schema())
