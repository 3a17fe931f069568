"""docs/concepts/objectives.md has the table of control headers, and its objects and filters are valid."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import yaml

from agent.config.flow_control import TRUST
from agent.envoy.process import validate
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, bootstrap
from agent.kube.objectives import NEW_GROUP, OBJECTIVE, decode
from agent.requests.control_headers import CONTROL_HEADERS
from agent.requests.flow_headers import REASONS
from agent.requests.objectives import REMEMBERED_NAMES
from tests.docs.test_pages import yaml_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "concepts" / "objectives.md"
TEXT = PAGE.read_text(encoding="utf-8")


def table(path: Path, heading: str, first: str) -> list[str]:
    """The rows of the table in this section whose first column is `first`."""
    section = path.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return section[section.index(f"| {first} |") :].split("\n\n")[0].splitlines()[2:]


def test_the_table_of_control_headers_is_that_of_the_agent() -> None:
    rows = [
        f"| `{header.name}` | {f'`{header.former}` ' if header.former else ''}| {header.meaning} |"
        for header in CONTROL_HEADERS
    ]
    assert table(PAGE, "The headers", "header") == rows


def test_the_reasons_for_which_a_header_is_not_used_are_documented() -> None:
    rows = [f"| `{reason}` | {meaning} |" for reason, meaning in REASONS.items()]
    assert table(ROOT / "docs" / "reference" / "metrics.md", "Objectives", "reason") == rows


def test_the_number_of_names_that_the_log_has_is_documented() -> None:
    assert f"for the first {REMEMBERED_NAMES} of them" in " ".join(TEXT.split())


def test_the_terms_are_the_first_rows() -> None:
    terms = [header.terms for header in CONTROL_HEADERS]
    assert terms == sorted(terms, reverse=True)
    numbers = {5: "The first five are the terms of the request."}
    assert numbers[terms.count(True)] in TEXT


def test_the_object_of_the_page_is_valid_and_bound_to_its_models() -> None:
    (found,) = [
        document
        for block in yaml_blocks([PAGE])
        for document in block.documents
        if document.get("kind") == "InferenceObjective"
    ]
    read = decode(NEW_GROUP, OBJECTIVE, msgspec.Raw(msgspec.json.encode(found)))
    assert (read.problem, read.priority, read.models) == ("", -1, ("nightly-summaries", "nightly-tags"))


def test_envoy_accepts_the_filter_of_the_page() -> None:
    (block,) = [block for block in yaml_blocks([PAGE]) if "envoy-filter" in block.kinds]
    pool = EnvoyPool("chat", ("127.0.0.1:8001",), "127.0.0.1:9002")
    config = bootstrap(EnvoyConfig((pool,), (EnvoyListener("in", "127.0.0.1:0", "chat"),)))
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"].insert(0, yaml.safe_load(block.text))
    assert validate(config) == ""


def test_the_modes_of_trust_are_documented() -> None:
    modes = re.findall(r"^\| `(\w+)`", "\n".join(table(PAGE, "Who may set them", "`trustHeaders`")), re.MULTILINE)
    assert modes == list(TRUST)
