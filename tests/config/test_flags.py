"""Flags are a short form of a file: the same configuration, the same checks; problems name the flag, not a line."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.app.vocabulary import VOCABULARY
from agent.commands import run
from agent.config import from_flags, parse
from agent.config.nodes import BadConfig


def configured(*flags: str):
    parser = argparse.ArgumentParser()
    run.add_arguments(parser)
    return run.configured(parser.parse_args(flags))


def test_flags_give_the_same_configuration_as_a_file() -> None:
    by_file = parse(
        """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
pools:
- name: chat
  profile: blend
  engine: vllm
  extProcAddress: 127.0.0.1:7002
  endpoints: [127.0.0.1:8001, '[::1]:8002']
scrape: {interval: 200ms}
admin: {address: 127.0.0.1:7090}
envoy: {edsDirectory: /run/igw}
""",
        "flags",
        VOCABULARY,
    )
    by_flags = configured(
        "--endpoints", "127.0.0.1:8001,[::1]:8002", "--pool", "chat", "--profile", "blend", "--engine", "vllm",
        "--scrape-interval", "200ms", "--ext-proc-address", "127.0.0.1:7002", "--admin-address", "127.0.0.1:7090",
        "--eds-directory", "/run/igw",
    )  # fmt: skip
    assert dataclasses.asdict(by_flags) == dataclasses.asdict(by_file)


def test_endpoints_alone_are_enough() -> None:
    config = configured("--endpoints", "127.0.0.1:8001, 127.0.0.1:8002")
    (pool,) = config.pools
    assert [endpoint.address for endpoint in pool.endpoints] == ["127.0.0.1:8001", "127.0.0.1:8002"]
    assert (pool.name, pool.profile, pool.ext_proc_address) == ("default", "least-cost", "127.0.0.1:9002")
    assert (config.admin.address, config.scrape.interval) == ("127.0.0.1:9090", 1)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scrape-interval", "10ms"], "--scrape-interval: 10ms is too short; write 50ms or more"),
        (["--scrape-interval", "1"], "--scrape-interval: 1 has no unit; write 1s for seconds or 1ms for milliseconds"),
        (["--profile", "best"], "--profile: there is no profile 'best'; valid values: affinity, blend, least-cost"),
        (["--engine", "vlllm"], "--engine: 'vlllm' is not an engine; did you mean 'vllm'?"),
        (["--pool", "a b"], "--pool: 'a b' is not a name; write letters, digits, '-', '_' and '.', at most 63 of them"),
        (
            ["--admin-address", "127.0.0.1:9002"],
            (
                "--admin-address: 127.0.0.1:9002 is also pools[0].extProcAddress, and the ext_proc "
                "port and the admin port must differ; write another port, or port 0 for any free port"
            ),
        ),
        (
            ["--ext-proc-address", "9002"],
            "--ext-proc-address: '9002' has no port; write HOST:PORT, such as 127.0.0.1:8000",
        ),
    ],
)
def test_a_problem_of_a_flag_names_it(flags: list[str], message: str) -> None:
    with pytest.raises(BadConfig) as refused:
        configured("--endpoints", "127.0.0.1:8001", *flags)
    assert refused.value.lines() == [message]


@pytest.mark.parametrize(
    ("endpoints", "message"),
    [
        ("127.0.0.1", "--endpoints: '127.0.0.1' has no port; write HOST:PORT, such as 127.0.0.1:8000"),
        ("a:1,,b:1", "--endpoints: an empty entry; write its value, or remove the comma"),
        ("a:1,a:1", "--endpoints: a:1 is listed twice in this pool, first at pools[0].endpoints[0]; keep one"),
    ],
)
def test_a_problem_of_the_endpoints_names_their_flag(endpoints: str, message: str) -> None:
    with pytest.raises(BadConfig) as refused:
        from_flags([text.strip() for text in endpoints.split(",")], vocabulary=VOCABULARY)
    assert refused.value.lines() == [message]


def test_an_endpoint_with_the_agent_s_own_address_is_refused() -> None:
    with pytest.raises(BadConfig) as refused:
        from_flags(["a:1"], vocabulary=VOCABULARY, ext_proc_address="a:1")
    assert refused.value.lines() == [
        "--endpoints: a:1 is the agent's --ext-proc-address; write the address of a model server"
    ]


def test_a_file_and_flags_contradict_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", str(tmp_path / "x.yaml"), "--endpoints", "a:1", "--profile", "blend"]) == 2
    assert capsys.readouterr().err == (
        "igw run: --config and --endpoints and --profile contradict each other; "
        "write that into the file, or leave --config out\n"
    )


def test_neither_file_nor_endpoints_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert capsys.readouterr().err == "igw run: nothing to serve; write --config FILE, or --endpoints HOST:PORT,...\n"


def test_a_typo_in_the_file_keeps_the_agent_from_starting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "typo.yaml"
    path.write_text(
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\npools:\n- endpoints: [a:1]\n  profil: blend\n"
    )
    assert main(["run", "--config", str(path)]) == 1
    assert capsys.readouterr().err == f"{path}:5: pools[0].profil: unknown key; did you mean 'profile'?\n"


def test_the_overview_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    out = capsys.readouterr().out
    for name in ("run", "check", "demo", "emulate", "render"):
        assert f"\n  {name} " in out


def test_an_unknown_command_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["rnu"])
    assert ended.value.code == 2
    assert "invalid choice: 'rnu'" in capsys.readouterr().err


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("igw ")
