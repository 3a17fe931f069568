"""The rendered configuration: a real Envoy accepts it, and the shipped files are rendered by the commands in them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml as pyyaml
from hypothesis import given
from hypothesis import strategies as st

from agent.__main__ import main
from agent.envoy.endpoints import document
from agent.envoy.process import validate
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, FailureMode, PickMode, bootstrap
from agent.envoy.yaml import dump
from agent.requests.control_headers import CONTROL, TERMS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "deploy" / "envoy").glob("*.yaml"))

POOL = EnvoyPool("llama", ("10.0.0.1:8000", "[fd00::1]:8000"), "agent.default.svc:9002")


def config(mode: PickMode = PickMode.BUFFERED, **more: Any) -> EnvoyConfig:
    return EnvoyConfig((POOL,), (EnvoyListener("in", "127.0.0.1:0", "llama", mode),), **more)


def ext_proc(data: Any) -> Any:
    (listener,) = data["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (found,) = [
        item["typed_config"] for item in manager["http_filters"] if item["name"] == "envoy.filters.http.ext_proc"
    ]
    return found


@pytest.mark.parametrize("mode", PickMode)
@pytest.mark.parametrize("failure_mode", FailureMode)
def test_envoy_accepts_the_rendered_configuration(mode: PickMode, failure_mode: FailureMode) -> None:
    assert validate(bootstrap(config(mode, failure_mode=failure_mode))) == ""


def test_validate_returns_the_error_of_envoy() -> None:
    assert "no_such_field" in validate({"no_such_field": 1})


def test_each_pool_has_a_cluster_and_a_picker_cluster() -> None:
    pools = (POOL, EnvoyPool("qwen", ("10.0.0.9:8000",), "127.0.0.1:9003"))
    listeners = (
        EnvoyListener("a", "127.0.0.1:0", "llama"),
        EnvoyListener("b", "[::1]:0", "qwen", PickMode.FULL_DUPLEX),
    )
    data = bootstrap(EnvoyConfig(pools, listeners))
    assert [item["name"] for item in data["static_resources"]["clusters"]] == [
        "llama",
        "llama-picker",
        "qwen",
        "qwen-picker",
    ]
    assert validate(data) == ""


def test_the_picker_learns_the_end_of_a_response_in_both_modes() -> None:
    buffered, full_duplex = (
        ext_proc(bootstrap(config(mode)))["processing_mode"] for mode in (PickMode.BUFFERED, PickMode.FULL_DUPLEX)
    )
    assert set(buffered.values()) == {"SEND", "BUFFERED", "SKIP", "NONE"}
    assert buffered["response_trailer_mode"] == "SKIP"
    assert full_duplex["response_trailer_mode"] == "SEND"
    assert full_duplex["response_body_mode"] == buffered["response_body_mode"] == "NONE"


def test_the_buffer_has_space_for_a_body_over_the_limit_of_the_picker() -> None:
    (listener,) = bootstrap(config(max_body=30_000_000))["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] > 30_000_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (config()._replace(admin="0.0.0.0:9901"), "use 127.0.0.1"),
        (config()._replace(pools=()), "no pool 'llama'"),
        (config()._replace(pools=(POOL, POOL)), "same name"),
        (config()._replace(pools=(POOL._replace(picker=""),)), "round_robin"),
        (config()._replace(pools=(POOL._replace(endpoints=("gpu-1:8000",)),)), "use its IP address"),
        (config()._replace(pools=(POOL._replace(endpoints=("10.0.0.1",)),)), "is not host:port"),
        (config()._replace(pools=(POOL._replace(endpoints=("10.0.0.1:99999",)),)), "is not host:port"),
    ],
)
def test_an_invalid_configuration_is_refused_with_what_to_change(wrong: EnvoyConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap(wrong)


def test_a_pool_with_a_directory_reads_its_endpoints_from_the_file_of_the_pool(tmp_path: Path) -> None:
    (tmp_path / "llama.eds.json").write_text(document("llama", ["10.0.0.1:8000"]), encoding="utf-8")
    data = bootstrap(config(eds_directory=str(tmp_path)))
    pool, picker = data["static_resources"]["clusters"]
    assert (pool["type"], picker["type"]) == ("EDS", "STRICT_DNS")
    assert "load_assignment" not in pool
    assert validate(data) == ""
    assert "node" not in bootstrap(config())


@pytest.mark.parametrize("mode", PickMode)
def test_an_upgrade_is_picked_at_its_headers_on_a_listener_with_a_picker(mode: PickMode) -> None:
    (listener,) = bootstrap(config(mode))["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    upgrade, every = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert upgrade["route"].items() >= every["route"].items()
    assert ("typed_per_filter_config" in upgrade) == (mode is not PickMode.ROUND_ROBIN)
    assert "typed_per_filter_config" not in every


def test_retries_of_server_errors_are_off_unless_the_file_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "igw.yaml"
    for more, retried in (("", False), ("envoy: {retryServerErrors: true, retryBudget: 33}\n", True)):
        file.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
            f"pools: [{{endpoints: ['10.0.0.1:8000']}}]\n{more}",
            encoding="utf-8",
        )
        assert main(["render", "--config", str(file)]) == 0
        data = pyyaml.safe_load(capsys.readouterr().out)
        pool, _ = data["static_resources"]["clusters"]
        (limits,) = pool["circuit_breakers"]["thresholds"]
        assert limits.get("retry_budget", {}).get("budget_percent", {}) == ({"value": 33} if retried else {})
        assert ("retriable_status_codes" in json.dumps(data)) == retried
        assert validate(data) == ""


@pytest.mark.parametrize(
    ("section", "removed"),
    [
        ("", set(TERMS)),
        ("flowControl: {trustHeaders: gateway, callerHeader: X-Tenant}\n", {*TERMS, "x-tenant"}),
        ("flowControl: {trustHeaders: none}\n", set(TERMS)),
        ("flowControl: {trustHeaders: all, callerHeader: x-tenant}\n", set()),
    ],
)
def test_the_headers_that_clients_may_not_set_are_removed_before_filters_and_routes(
    section: str, removed: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "igw.yaml"
    file.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"pools: [{{endpoints: ['10.0.0.1:8000']}}]\n{section}",
        encoding="utf-8",
    )
    assert main(["render", "--config", str(file), "--mode", "buffered,full-duplex,round-robin"]) == 0
    data = pyyaml.safe_load(capsys.readouterr().out)
    for listener in data["static_resources"]["listeners"]:
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        (early,) = manager["early_header_mutation_extensions"]
        names = [mutation["remove"] for mutation in early["typed_config"]["mutations"]]
        assert set(names) == {"x-gateway-destination-endpoint", *removed}
        assert set(manager["route_config"]["request_headers_to_remove"]) == CONTROL
    assert validate(data) == ""


words = st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=10,
)


@given(
    data=values
    | st.sampled_from(["no", "On", "1e3", "0x1f", "12:30", "a: b", "- a", "~", "null", "2026-01-01", "=", "a #b"])
)
def test_written_yaml_reads_back_as_the_same_data(data: Any) -> None:
    assert pyyaml.safe_load(dump(data)) == json.loads(json.dumps(data))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_a_shipped_configuration_is_the_output_of_its_first_line(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text(encoding="utf-8")
    words = shlex.split(text.splitlines()[0].removeprefix("# Rendered by: "))
    assert words[:2] == ["igw", "render"]
    assert main(words[1:]) == 0
    assert capsys.readouterr().out == text, f"render it again: {shlex.join(words)} > deploy/envoy/{path.name}"
    # Envoy accepts a file of endpoints only where there is one.
    (tmp_path / "default.eds.json").write_text(document("default", ["127.0.0.1:8001"]), encoding="utf-8")
    assert validate(pyyaml.safe_load(text.replace("/run/igw/endpoints", str(tmp_path)))) == ""


def test_four_configurations_are_shipped() -> None:
    assert {path.name for path in SHIPPED} == {"buffered.yaml", "demo.yaml", "eds.yaml", "full-duplex.yaml"}


def test_a_configuration_file_of_the_agent_is_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agent file.yaml"
    file.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "extProc: {maxBody: 2MiB}\n"
        "pools:\n"
        "- {name: llama, extProcAddress: '0.0.0.0:9002', endpoints: ['10.0.0.1:8000']}\n"
        "- {name: qwen, extProcAddress: '127.0.0.1:9003', endpoints: ['10.0.0.2:8000']}\n",
        encoding="utf-8",
    )
    assert main(["render", "--config", str(file), "--failure-mode", "open", "--listen", "0.0.0.0:80"]) == 0
    data = pyyaml.safe_load(capsys.readouterr().out)
    assert validate(data) == ""
    listeners = data["static_resources"]["listeners"]
    assert [(item["name"], item["address"]["socket_address"]["port_value"]) for item in listeners] == [
        ("llama-buffered", 80),
        ("qwen-buffered", 81),
    ]
    assert {item["per_connection_buffer_limit_bytes"] for item in listeners} == {(2 << 20) + (1 << 20)}
    pickers = [item["load_assignment"]["endpoints"][0] for item in data["static_resources"]["clusters"][1::2]]
    assert [item["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] for item in pickers] == [
        9002,
        9003,
    ]
    assert "0.0.0.0" not in json.dumps(pickers)


def test_a_file_that_the_agent_refuses_is_not_rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "igw.yaml"
    file.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: foo-scorer}]\n"
        "pools: [{endpoints: ['10.0.0.1:8000'], engine: vlm}]\n"
    )
    outputs = []
    for command in (["check"], ["render", "--config"]):
        assert main([*command, str(file)]) == 1
        outputs.append(capsys.readouterr())
    assert outputs[0] == outputs[1]
    assert "'foo-scorer' is not a plugin type" in outputs[1].err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 2, "--endpoints"),
        (["--endpoints", "10.0.0.1:8000", "--mode", "mirror"], 2, "round-robin"),
        (["--endpoints", "gpu-1:8000"], 2, "IP address"),
        (["--endpoints", "10.0.0.1:8000", "--listen", "80"], 2, "IP:PORT"),
        (["--endpoints", "10.0.0.1:8000", "--admin", "0.0.0.0:9901"], 2, "127.0.0.1"),
        (["--endpoints", "10.0.0.1"], 1, "HOST:PORT"),
        (["--config", "no such file"], 1, "no such file"),
        (["--config", "x", "--endpoints", "10.0.0.1:8000"], 2, "remove --endpoints"),
    ],
)
def test_a_usage_error_has_a_message(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", *arguments]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


@pytest.mark.parametrize(
    ("hosts", "kind", "addresses"),
    [
        (["10.0.1.1", "fd00::2"], "STATIC", ["10.0.1.1", "fd00::2"]),
        (["igw.llm.svc"], "STRICT_DNS", ["igw.llm.svc"]),
    ],
)
def test_several_pickers_are_checked_for_health_and_all_get_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], hosts: list[str], kind: str, addresses: list[str]
) -> None:
    file = tmp_path / "igw.yaml"
    file.write_text(
        f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nenvoy: {{pickerHosts: {hosts}}}\n"
        "pools: [{name: llama, extProcAddress: '0.0.0.0:9002', endpoints: ['10.0.0.1:8000']}]\n",
        encoding="utf-8",
    )
    assert main(["render", "--config", str(file)]) == 0
    data = pyyaml.safe_load(capsys.readouterr().out)
    assert validate(data) == ""
    _, picker = data["static_resources"]["clusters"]
    (locality,) = picker["load_assignment"]["endpoints"]
    found = [each["endpoint"]["address"]["socket_address"] for each in locality["lb_endpoints"]]
    assert [(each["address"], each["port_value"]) for each in found] == [(address, 9002) for address in addresses]
    assert picker["type"] == kind
    (check,) = picker["health_checks"]
    assert check["grpc_health_check"] == {"service_name": "readiness"}
    assert (check["interval"], check["no_traffic_interval"]) == ("1s", "1s")


def test_a_single_picker_has_no_health_check() -> None:
    pool = POOL._replace(picker="127.0.0.1:9002")
    _, picker = bootstrap(config()._replace(pools=(pool,)))["static_resources"]["clusters"]
    assert "health_checks" not in picker


def test_the_limits_of_held_requests_are_those_of_the_file_and_the_keepalive_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "igw.yaml"
    file.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "envoy: {messageTimeout: 1m, maxMessageTimeout: 20m, streamIdleTimeout: 30m}\n"
        "pools: [{name: llama, endpoints: ['10.0.0.1:8000']}]\n",
        encoding="utf-8",
    )
    assert main(["render", "--config", str(file)]) == 0
    data = pyyaml.safe_load(capsys.readouterr().out)
    assert validate(data) == ""
    manager = data["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (ext_proc,) = (item["typed_config"] for item in manager["http_filters"] if item["name"].endswith("ext_proc"))
    assert (ext_proc["message_timeout"], ext_proc["max_message_timeout"]) == ("60s", "1200s")
    assert manager["stream_idle_timeout"] == "1800s"
    _, picker = data["static_resources"]["clusters"]
    (options,) = picker["typed_extension_protocol_options"].values()
    keepalive = options["explicit_http_config"]["http2_protocol_options"]["connection_keepalive"]
    assert keepalive == {"interval": "10s", "timeout": "5s"}
