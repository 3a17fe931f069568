"""The table of paths: every path of a model server has the row that its server's documents give it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.engines import ENGINES, engine
from agent.requests.paths import EFFECTS, EMPTIES, NO_PATH, NOTHING, PATHS, PREFILLS, UNKNOWN, PathRow, empties, match
from agent.requests.rendering import READERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "paths.md"


def filled(pattern: str) -> str:
    """A path that the pattern stands for."""
    return re.sub(r"\{(\w+)\}", lambda variable: f"a-{variable[1]}", pattern)


@pytest.mark.parametrize("row", PATHS, ids=[row.pattern for row in PATHS])
def test_a_row_applies_to_its_path_behind_any_prefix_and_before_any_query(row: PathRow) -> None:
    prefixes = ("",) if row.pattern == "/" else ("", "/v1", "/team-a/v1", "/a/b/c/d/e")
    for prefix in prefixes:
        path = prefix + filled(row.pattern)
        for end in ("", "/", "?a=b/c"):
            if row.pattern == "/" and end == "/":
                continue
            found = match(path + end)
            assert found.row is row, path + end
            assert found.model == ("a-model" if "{model}" in row.pattern else "")


@pytest.mark.parametrize("row", PATHS, ids=[row.pattern for row in PATHS])
def test_a_row_is_read_by_a_known_reader_exactly_where_it_prefills(row: PathRow) -> None:
    assert row.effect in EFFECTS
    assert (row.reader in READERS) is (row.effect == PREFILLS)
    assert (row.reader == "") is (row.effect != PREFILLS)
    assert not row.strict or row.effect == PREFILLS


def test_no_two_rows_have_one_pattern() -> None:
    assert len({row.pattern for row in PATHS}) == len(PATHS)


@given(st.text(max_size=60) | st.lists(st.sampled_from(["v1", "models", "chat", "infer", "", "?"])).map("/".join))
def test_any_text_is_a_path_of_some_row_or_unknown(path: str) -> None:
    found = match(path)
    assert found.row is (UNKNOWN if path else NO_PATH) or found.row in PATHS


def test_a_long_path_of_many_segments_is_looked_up_by_its_end() -> None:
    assert match("/" * 100_000 + "v1/chat/completions").row.reader == "chat"
    assert match("/x" * 100_000).row is UNKNOWN


@pytest.mark.parametrize(
    ("path", "reader", "model"),
    [
        ("/v1/chat/completions", "chat", ""),
        ("/openai/deployments/gpt/chat/completions?api-version=1", "chat", ""),
        ("/v1/completions", "completion", ""),
        ("/completion", "completion", ""),
        ("/inference/v1/generate", "generate", ""),
        ("/v2/models/chat/generate", "generate", "chat"),
        ("/v2/models/org%2Fchat/versions/2/generate_stream", "generate", "org/chat"),
        ("/v2/models/chat/versions/1/infer", "tensors", "chat"),
        ("/v1/models/emulated:predict", "instances", "emulated"),
        ("/v1/projects/p/locations/l/endpoints/7:predict", "instances", ""),
        ("/", "generate", ""),
        ("/custom", "any", ""),
        ("", "any", ""),
    ],
)
def test_a_path_gives_the_reader_and_the_model(path: str, reader: str, model: str) -> None:
    found = match(path)
    assert (found.row.reader, found.model) == (reader, model)


@pytest.mark.parametrize(
    "path",
    [
        "/tokenize",
        "/v1/tokenize",
        "/detokenize",
        "/v1/messages/count_tokens",
        "/v1/responses/input_tokens",
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/apply-template",
        "/v1/models",
        "/v1/models/tiny",
        "/health",
        "/metrics",
        "/v1/load_lora_adapter",
        "/v1/responses/resp_1/cancel",
        "/v1beta/models/tiny:countTokens",
    ],
)
def test_what_prefills_nothing_is_known(path: str) -> None:
    assert match(path).row.effect == NOTHING
    assert not empties(path, "POST")


@pytest.mark.parametrize("name", ENGINES)
def test_the_paths_that_an_engine_counts_as_resets_empty_the_cache_through_the_picker_too(name: str) -> None:
    counter = engine(name).cache_resets
    for path in counter.paths if counter else ():
        assert match(path).row.effect == EMPTIES
        assert empties(path + "?level=1", "POST")


def test_only_the_methods_of_a_path_empty_a_cache() -> None:
    assert not empties("/sleep", "GET")
    assert not empties("/sleep", "")
    assert empties("/flush_cache", "GET")
    assert not empties("/v1/chat/completions", "POST")


def test_the_page_of_the_paths_is_the_table() -> None:
    def line(row: PathRow) -> str:
        strict = "refused" if row.strict else "passed on" if row.effect == PREFILLS else "-"
        methods = "" if row.methods == ("POST",) else f" ({', '.join(row.methods)})"
        return f"| `{row.pattern}`{methods} | {row.reader or '-'} | {row.effect} | {strict} |"

    expected = [line(row) for row in PATHS]
    found = [text for text in PAGE.read_text(encoding="utf-8").splitlines() if text.startswith("| `/")]
    assert found == expected, "\n".join(expected)
