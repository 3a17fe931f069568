"""The YAML of the documents is valid for its reader. Their queries select what the agent publishes, and return what the
text describes. Their renames end at names that exist.

The words behind `yaml` in a fence say what a block is: fields of a cluster of Envoy (`envoy-cluster`), its routes
(`envoy-routes`), its gRPC service (`envoy-grpc-service`), manifests (`hpa`, `keda`), values of a chart (`adapter`). A
file of the agent is known by its `kind`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import certifi
import pytest
import yaml

from agent.envoy.process import validate
from exporters.catalog import ALIASES, CATALOG
from tests.contract.test_docs import DOCUMENTS, blocks
from tests.processes import ROOT
from tests.promql import family, labels, metrics

UPGRADE = ROOT / "docs" / "operations" / "upgrade.md"
OTHERS = re.compile(r"up|kube_.*")  # metrics of Prometheus and of kube-state-metrics
MATCHERS = "<<.LabelMatchers>>"
CHAT = 'pool="chat"'


class Yaml(NamedTuple):
    """A block of YAML: where it is, the words of its fence behind `yaml`, and its documents."""

    place: str
    kinds: frozenset[str]
    text: str
    documents: list[Any]


def yaml_blocks(documents: list[Path] | None = None) -> Iterator[Yaml]:
    """Every block of YAML."""
    for document in documents or DOCUMENTS:
        for block in blocks(document):
            if block.words and block.words[0] == "yaml":
                place = f"{document.relative_to(ROOT)}:{block.line}"
                yield Yaml(place, frozenset(block.words[1:]), block.text, list(yaml.safe_load_all(block.text)))


def of_kind(kind: str) -> list[Yaml]:
    """The blocks with the word `kind` in their fence."""
    found = [block for block in yaml_blocks() if kind in block.kinds]
    assert found, kind
    return found


def queries(node: object) -> Iterator[str]:
    """Every PromQL expression in YAML, by the keys that hold one."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in {"expr", "query", "metricsQuery", "seriesQuery"}:
                yield value.replace(f",{MATCHERS}", f",{CHAT}").replace(MATCHERS, CHAT)
            else:
                yield from queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from queries(value)


def every_query() -> list[str]:
    """The queries of the YAML and of the blocks of PromQL of all documents."""
    plain = [block.text for document in DOCUMENTS for block in blocks(document) if block.words[:1] == ("promql",)]
    return plain + [query for block in yaml_blocks() for node in block.documents for query in queries(node)]


def promtool(tmp_path: Path, command: str, content: object) -> str:
    """What promtool prints of a file with this content; the test fails where it finds a fault."""
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    done = subprocess.run(
        ["promtool", *command.split(), file], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def igw(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """What `igw` prints with these arguments."""
    command = [sys.executable, "-m", "agent", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


POOLS = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
pools:
- {name: chat, extProcAddress: "10.0.1.1:9002", endpoints: ["10.0.0.7:8000"]}
- {name: code, extProcAddress: "10.0.1.1:9003", endpoints: ["10.0.0.8:8000"]}
"""


@pytest.fixture
def envoy(tmp_path: Path) -> dict[str, Any]:
    """The configuration that `igw render` prints for the pools `chat` and `code`."""
    file = tmp_path / "pools.yaml"
    file.write_text(POOLS, encoding="utf-8")
    rendered = igw("render", "--config", file)
    assert rendered.returncode == 0, rendered.stderr
    config: dict[str, Any] = yaml.safe_load(rendered.stdout)
    return config


def cluster(config: dict[str, Any], name: str) -> dict[str, Any]:
    """The cluster of this name."""
    (found,) = (each for each in config["static_resources"]["clusters"] if each["name"] == name)
    fields: dict[str, Any] = found
    return fields


def manager(config: dict[str, Any]) -> dict[str, Any]:
    """The HTTP connection manager of its first listener."""
    found: dict[str, Any] = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return found


def test_every_block_of_yaml_can_be_read() -> None:
    assert sum(len(block.documents) for block in yaml_blocks()) > 20


REFUSED = {"file=typo.yaml", "file=refused.yaml"}  # files that show what is wrong with them


def test_a_file_of_the_agent_is_valid(tmp_path: Path) -> None:
    files = []
    for block in yaml_blocks():
        if "kind: EndpointPickerConfig" in block.text and not REFUSED & set(block.kinds):
            files.append(tmp_path / block.place.replace("/", "-"))
            files[-1].write_text(block.text, encoding="utf-8")
    assert len(files) > 10
    checked = igw("check", "--quiet", *files)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_query_selects_metrics_and_labels_of_the_catalogue() -> None:
    rows = {**CATALOG, **ALIASES}
    known = {"stage", "signal", "condition", "status", "job", "name"}
    for row in CATALOG.values():
        known |= {*row.labels, *(label for alias in row.aliases for label in alias.labels)}
    for query in every_query():
        unknown = {name for name in metrics(query) if not OTHERS.fullmatch(name) and family(name) not in rows}
        assert unknown == set(), query
        assert labels(query) <= known, query


def test_prometheus_can_read_the_queries(tmp_path: Path) -> None:
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(every_query())]
    assert len(rules) > 10
    assert "SUCCESS" in promtool(tmp_path, "check rules", {"groups": [{"name": "documents", "rules": rules}]})


def adapter_queries() -> dict[str, str]:
    """The queries of the rules for prometheus-adapter, by the metric that the HPA names, for the pool `chat`."""
    (block,) = of_kind("adapter")
    rules = block.documents[0]["rules"]["external"]
    return {rule["name"]["as"]: next(query for query in queries({"query": rule["metricsQuery"]})) for rule in rules}


def test_keda_and_the_adapter_ask_the_same() -> None:
    block, _ = of_kind("keda")
    triggers = block.documents[0]["spec"]["triggers"]
    requested = {trigger["metadata"]["query"] for trigger in triggers}
    assert len(requested) == 2
    assert requested <= set(adapter_queries().values())
    assert {trigger["metadata"]["ignoreNullValues"] for trigger in triggers} == {"false"}


def test_the_hpa_reads_metrics_of_the_adapter_with_the_targets_of_keda() -> None:
    (hpa,), (keda, _) = of_kind("hpa"), of_kind("keda")
    external = [metric["external"] for metric in hpa.documents[0]["spec"]["metrics"]]
    assert {one["metric"]["name"] for one in external} <= set(adapter_queries())
    thresholds = [trigger["metadata"]["threshold"] for trigger in keda.documents[0]["spec"]["triggers"]]
    assert [one["target"]["averageValue"] for one in external] == thresholds
    assert {one["target"]["type"] for one in external} == {"AverageValue"}


def test_from_zero_the_held_requests_of_all_agents_start_a_server_and_running_ones_keep_it() -> None:
    _, block = of_kind("keda")
    spec = block.documents[0]["spec"]
    held, in_flight = (trigger["metadata"] for trigger in spec["triggers"])
    assert spec["minReplicaCount"] == 0
    assert held["query"].startswith("sum by (pool) (igw_flow_held_requests{")
    assert in_flight["query"] in adapter_queries().values()
    assert {each["activationThreshold"] for each in (held, in_flight)} == {"0"}
    assert {each["ignoreNullValues"] for each in (held, in_flight)} == {"false"}


BOTH_UP = {'up{job="igw",instance="a"}': 1, 'up{job="igw",instance="b"}': 1}


@pytest.mark.parametrize(
    ("metric", "series", "value"),
    [
        pytest.param(
            "inference_pool_waiting",
            {
                'igw_pool_waiting_requests{pool="chat",instance="a"}': 8,
                'igw_pool_waiting_requests{pool="chat",instance="b"}': 6,
                'igw_pool_waiting_requests{pool="code",instance="a"}': 99,
                'igw_pool_coverage_ratio{pool="chat",signal="waiting_requests",instance="a"}': 1,
                'igw_pool_coverage_ratio{pool="chat",signal="waiting_requests",instance="b"}': 0.5,
            },
            8,
            id="two agents report one queue",
        ),
        pytest.param(
            "inference_pool_waiting",
            {
                'igw_pool_waiting_requests{pool="chat",instance="a"}': 8,
                'igw_pool_coverage_ratio{pool="chat",signal="waiting_requests",instance="a"}': 0.4,
            },
            None,
            id="less than half of the pool is known",
        ),
        pytest.param(
            "inference_pool_waiting",
            {'igw_pool_coverage_ratio{pool="chat",signal="waiting_requests",instance="a"}': 0},
            None,
            id="the queue is withheld",
        ),
        pytest.param(
            "inference_pool_in_flight",
            {
                'igw_pool_in_flight_requests{pool="chat",instance="a"}': 5,
                'igw_pool_in_flight_requests{pool="chat",instance="b"}': 7,
                **BOTH_UP,
            },
            12,
            id="requests of two agents add up",
        ),
        pytest.param(
            "inference_pool_in_flight",
            {
                'igw_pool_in_flight_requests{pool="chat",instance="a"}': 5,
                **BOTH_UP,
                'up{job="igw",instance="b"}': 0,
            },
            None,
            id="the part of an agent is missing",
        ),
        pytest.param(
            "inference_pool_kv",
            {
                'igw_endpoint_kv_usage_ratio{pool="chat",server="10.0.0.7:8000",instance="a"}': 0.5,
                'igw_endpoint_kv_usage_ratio{pool="chat",server="10.0.0.7:8000",instance="b"}': 0.5,
                'igw_endpoint_kv_usage_ratio{pool="chat",server="10.0.0.8:8000",instance="a"}': 0.75,
                'igw_pool_coverage_ratio{pool="chat",signal="kv_usage_ratio",instance="a"}': 1,
            },
            1.25,
            id="each server counts once",
        ),
        pytest.param(
            "inference_pool_backlog_seconds",
            {
                'igw_pool_prefill_backlog_seconds{pool="chat",instance="a"}': 2,
                'igw_pool_prefill_backlog_seconds{pool="chat",instance="b"}': 3,
            },
            3,
            id="the queue of a server counts once",
        ),
    ],
)
def test_a_scaling_query_returns_the_load_or_nothing(
    tmp_path: Path, metric: str, series: dict[str, float], value: float | None
) -> None:
    query = adapter_queries()[metric]
    expected = [] if value is None else [{"labels": '{pool="chat"}', "value": value}]
    test = {
        "interval": "5s",
        "input_series": [{"series": name, "values": f"{number}x3"} for name, number in series.items()],
        "promql_expr_test": [{"expr": query, "eval_time": "10s", "exp_samples": expected}],
    }
    assert "SUCCESS" in promtool(tmp_path, "test rules", {"evaluation_interval": "5s", "tests": [test]})


def test_envoy_accepts_the_fields_that_a_document_adds_to_a_cluster(envoy: dict[str, Any]) -> None:
    for block in of_kind("envoy-cluster"):
        fields = yaml.safe_load(block.text.replace("/etc/igw/ca.pem", certifi.where()))
        of_picker = fields.get("load_assignment", {}).get("cluster_name") == "chat-picker"
        config = yaml.safe_load(yaml.safe_dump(envoy))
        cluster(config, "chat-picker" if of_picker else "chat").update(fields)
        assert validate(config) == "", block.place


def test_envoy_accepts_the_routes_and_the_service_that_a_document_adds(envoy: dict[str, Any]) -> None:
    (routes,), (service,) = of_kind("envoy-routes"), of_kind("envoy-grpc-service")
    found = manager(envoy)
    found["route_config"]["virtual_hosts"][0]["routes"] = routes.documents[0]
    next(each for each in found["http_filters"] if each["name"].endswith("ext_proc"))["typed_config"] |= (
        service.documents[0]
    )
    assert validate(envoy) == ""


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    plain = (re.sub(r"\]\([^)]*\)|[`*\[]", "", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_a_link_to_a_heading_leads_to_one() -> None:
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\(([^)\s#:]*)#([^)\s]+)\)", document.read_text(encoding="utf-8")):
            page = (document.parent / target) if target else document
            if page.suffix == ".md":
                assert anchor in anchors(page), f"{document.relative_to(ROOT)} links to {target}#{anchor}"


def renames() -> list[tuple[str, list[str]]]:
    """The rows of the tables of renames: the heading of the new column's table, and the words of a row in code."""
    text = UPGRADE.read_text(encoding="utf-8").partition("## Renamed")[2]
    found, heading = [], ""
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and "in 0.1.0" in cells[0]:
            heading = cells[0].partition(" in ")[0]
        elif line.startswith("| `"):
            found.append((heading, [cells[0].split("`")[1], *re.findall(r"`([^`]+)`", cells[1])]))
    return found


def test_a_rename_ends_at_a_name_that_exists() -> None:
    rules = (ROOT / "alerts" / "igw.rules.yaml").read_text(encoding="utf-8")
    every_label = {label for row in CATALOG.values() for label in row.labels}
    seen = set()
    for heading, (old, *new) in renames():
        seen.add(heading)
        assert new, old
        if heading == "metric":
            assert old not in CATALOG
            assert set(new) <= set(CATALOG), old
        elif heading == "label":
            assert old not in every_label
            assert set(new) <= every_label, old
        elif heading == "alert":
            assert all(f"alert: {name}\n" in rules for name in new), old
        elif heading == "option":
            full = (ROOT / "deploy" / "examples" / "full.yaml").read_text(encoding="utf-8")
            assert all(f"{name.rpartition('.')[2]}:" in full for name in new), old
    assert seen == {"metric", "label", "label value", "alert", "option"}
