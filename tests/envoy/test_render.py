"""The rendered configuration is one that a real Envoy takes, and says what our documents say."""

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
from agent.envoy.process import validate
from agent.envoy.render import FailureMode, Listener, Pool, Settings, Way, bootstrap
from agent.envoy.text import yaml

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "deploy" / "envoy").glob("*.yaml"))

POOL = Pool("llama", ("10.0.0.1:8000", "[fd00::1]:8000"), "agent.default.svc:9002")


def settings(way: Way = Way.BUFFERED, **more: Any) -> Settings:
    return Settings((POOL,), (Listener("in", "127.0.0.1:0", "llama", way),), **more)


def ext_proc(data: Any) -> Any:
    (listener,) = data["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (found,) = [one["typed_config"] for one in manager["http_filters"] if one["name"] == "envoy.filters.http.ext_proc"]
    return found


@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("failure_mode", FailureMode)
def test_envoy_takes_what_is_rendered(way: Way, failure_mode: FailureMode) -> None:
    assert validate(bootstrap(settings(way, failure_mode=failure_mode))) == ""


def test_envoy_says_what_it_has_against_a_configuration() -> None:
    assert "no_such_field" in validate({"no_such_field": 1})


def test_several_pools_have_a_cluster_and_a_picker_each() -> None:
    pools = (POOL, Pool("qwen", ("10.0.0.9:8000",), "127.0.0.1:9003"))
    listeners = (Listener("a", "127.0.0.1:0", "llama"), Listener("b", "[::1]:0", "qwen", Way.FULL_DUPLEX))
    data = bootstrap(Settings(pools, listeners))
    assert [one["name"] for one in data["static_resources"]["clusters"]] == [
        "llama",
        "llama-picker",
        "qwen",
        "qwen-picker",
    ]
    assert validate(data) == ""


def test_the_end_of_a_request_is_told_in_both_modes() -> None:
    buffered, full_duplex = (
        ext_proc(bootstrap(settings(way)))["processing_mode"] for way in (Way.BUFFERED, Way.FULL_DUPLEX)
    )
    assert set(buffered.values()) == {"SEND", "BUFFERED", "SKIP", "NONE"}
    assert buffered["response_trailer_mode"] == "SKIP"
    assert full_duplex["response_trailer_mode"] == "SEND"
    assert full_duplex["response_body_mode"] == buffered["response_body_mode"] == "NONE"


def test_the_buffer_holds_a_body_that_the_picker_has_to_refuse() -> None:
    (listener,) = bootstrap(settings(max_body=30_000_000))["static_resources"]["listeners"]
    assert listener["per_connection_buffer_limit_bytes"] > 30_000_000


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (settings()._replace(admin="0.0.0.0:9901"), "use 127.0.0.1"),
        (settings()._replace(pools=()), "no pool 'llama'"),
        (settings()._replace(pools=(POOL, POOL)), "same name"),
        (settings()._replace(pools=(POOL._replace(picker=""),)), "round_robin"),
        (settings()._replace(pools=(POOL._replace(endpoints=("gpu-1:8000",)),)), "use its IP address"),
        (settings()._replace(pools=(POOL._replace(endpoints=("10.0.0.1",)),)), "write host:port"),
        (settings()._replace(pools=(POOL._replace(endpoints=("10.0.0.1:99999",)),)), "write host:port"),
    ],
)
def test_settings_that_cannot_work_are_refused_with_what_to_change(wrong: Settings, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        bootstrap(wrong)


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
def test_what_is_written_as_yaml_reads_back_as_it_was(data: Any) -> None:
    assert pyyaml.safe_load(yaml(data)) == json.loads(json.dumps(data))


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_a_shipped_configuration_is_what_its_first_line_prints(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8")
    words = shlex.split(text.splitlines()[0].removeprefix("# Rendered by: "))
    assert words[:2] == ["igw", "render"]
    assert main(words[1:]) == 0
    assert capsys.readouterr().out == text, f"render it again: {shlex.join(words)} > deploy/envoy/{path.name}"
    assert validate(pyyaml.safe_load(text)) == ""


def test_configurations_are_shipped() -> None:
    assert {path.name for path in SHIPPED} == {"buffered.yaml", "demo.yaml", "full-duplex.yaml"}


def test_a_configuration_file_of_the_agent_is_rendered_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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
    assert [(one["name"], one["address"]["socket_address"]["port_value"]) for one in listeners] == [
        ("llama-buffered", 80),
        ("qwen-buffered", 81),
    ]
    assert {one["per_connection_buffer_limit_bytes"] for one in listeners} == {(2 << 20) + (1 << 20)}
    pickers = [one["load_assignment"]["endpoints"][0] for one in data["static_resources"]["clusters"][1::2]]
    assert [one["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]["port_value"] for one in pickers] == [
        9002,
        9003,
    ]
    assert "0.0.0.0" not in json.dumps(pickers)


def test_a_file_that_the_agent_would_refuse_is_not_rendered_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "igw.yaml"
    file.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins: [{type: foo-scorer}]\n"
        "pools: [{endpoints: ['10.0.0.1:8000'], engine: vlm}]\n"
    )
    said = []
    for command in (["check"], ["render", "--config"]):
        assert main([*command, str(file)]) == 1
        said.append(capsys.readouterr())
    assert said[0] == said[1]
    assert "'foo-scorer' is not a plugin type" in said[1].err


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        ([], 2, "--endpoints"),
        (["--endpoints", "10.0.0.1:8000", "--mode", "mirror"], 2, "round-robin"),
        (["--endpoints", "gpu-1:8000"], 2, "IP address"),
        (["--endpoints", "10.0.0.1:8000", "--listen", "80"], 2, "IP:PORT"),
        (["--endpoints", "10.0.0.1:8000", "--admin", "0.0.0.0:9901"], 2, "127.0.0.1"),
        (["--endpoints", "10.0.0.1"], 1, "HOST:PORT"),
        (["--config", "no such file"], 1, "no such file"),
        (["--config", "x", "--endpoints", "10.0.0.1:8000"], 2, "leave --endpoints"),
    ],
)
def test_wrong_use_of_the_command_is_told(
    words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", *words]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert told in err
