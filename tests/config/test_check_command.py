"""`igw check` prints the configuration of a file or all its problems; with a different exit status."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = ROOT / "deploy/examples/minimal.yaml"


def test_a_good_file_is_ok_and_its_defaults_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(MINIMAL)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"{MINIMAL}: ok"
    assert "  pool default: profile least-cost, ext_proc on 127.0.0.1:9002, 2 endpoints" in out
    assert "  state: staleAfter 3s" in out


def test_every_option_of_an_endpoint_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "igw.yaml"
    entry = "{address: '10.0.0.1:80', pod: llm/chat-0, node: gpu-1, labels: {tier: gold, app: chat, empty: }}"
    path.write_text(f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools:\n- endpoints: [{entry}]\n")
    assert main(["check", str(path)]) == 0
    shown = "    10.0.0.1:80  vllm, labels {app: chat, empty: , tier: gold}, node gpu-1, pod llm/chat-0"
    assert shown in capsys.readouterr().out.splitlines()


def test_bands_objectives_and_what_pools_hold_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "igw.yaml"
    path.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        "objectives: [{name: batch, priority: -1, models: [small]}]\n"
        "flowControl: {priorityBands: [{priority: 10, maxRequests: 5k}, {priority: -1, defaultRequestTTL: 5s}]}\n"
        "pools: [{endpoints: ['10.0.0.1:80'], scaleFromZero: true, gateway: gke}]\n"
    )
    assert main(["check", str(path)]) == 0
    out = capsys.readouterr().out.splitlines()
    policies = "fairnessPolicyRef round-robin-fairness-policy, orderingPolicyRef edf-ordering-policy"
    for line in (
        (
            "  pool default: profile least-cost, ext_proc on 127.0.0.1:9002, 1 endpoint, requests held at zero, "
            "requests held for 8s at most"
        ),
        f"  flowControl.priorityBands[10]: maxRequests 5000, defaultRequestTTL 1m, {policies}",
        f"  flowControl.priorityBands[-1]: defaultRequestTTL 5s, {policies}",
        "  objectives[batch]: name batch, priority -1, models [small]",
    ):
        assert line in out


def test_a_file_without_pools_is_valid_and_the_missing_pool_is_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(ROOT / "deploy/examples/llm-d.yaml")]) == 0
    out = capsys.readouterr().out
    assert "no pools: `igw run` needs one; add pools: with a name, and endpoints or an inferencePool" in out
    assert "profile default: queue-scorer x 2 + kv-cache-utilization-scorer x 2 + prefix-cache-scorer x 3" in out
    assert "note: plugins[6].parameters.insecureSkipVerify of metrics-data-source has no effect" in out


def test_a_typo_is_reported_with_file_line_and_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "with a space.yaml"
    path.write_text(MINIMAL.read_text() + "scrape:\n  intervall: 1s\n")
    assert main(["check", str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"{path}:10: scrape.intervall: unknown key; did you mean 'interval'?\n"
    assert captured.out == ""


def test_one_bad_file_of_two_fails_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("")
    assert main(["check", "--quiet", str(bad), str(MINIMAL)]) == 1
    assert capsys.readouterr().out == ""


def test_no_file_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "igw check: no file is given; write igw check FILE\n"


def test_the_options_are_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--options"]) == 0
    assert "| `scrape.interval` | duration | `1s` |" in capsys.readouterr().out
