"""A configuration with a typo does not start, has an error with the correction, and does not affect a running agent."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from agent.__main__ import main
from agent.envoy.render import PickMode
from tests.journeys.bad_input.fleet import IGW, GatewayFleet, a_fleet, chat, document
from tests.processes import Processes
from tests.waiting import found

GOOD = document({"pool": ["127.0.0.1:8001", "127.0.0.1:8002"]})
# The right text, the wrong text in its place, its line, and the error.
TABLE = {
    "a key": ("interval: 100ms", "intervall: 100ms", 4, "scrape.intervall: unknown key; did you mean 'interval'?"),
    "a section": ("scrape:", "scrap:", 4, "scrap: unknown key; did you mean 'scrape'?"),
    "a unit": ("100ms", "100", 4, "scrape.interval: 100 has no unit; write"),
    "a profile": (
        "name: pool",
        "profile: least-cots",
        8,
        "there is no profile 'least-cots'; did you mean 'least-cost'?",
    ),
    "an engine": ("name: pool", "engine: vlm", 8, "did you mean 'vllm'?"),
    "an address": ("'127.0.0.1:8001'", "'127.0.0.1'", 8, "HOST:PORT"),
    "an address twice": ("127.0.0.1:8002", "127.0.0.1:8001", 8, "127.0.0.1:8001"),
    "a limit below the interval": ("staleAfter: 2s", "staleAfter: 100ms", 5, "so every reading would be stale; write"),
    "the kind": ("EndpointPickerConfig", "EndpointPickConfig", 2, "EndpointPickerConfig"),
    "the syntax": ("{interval: 100ms", "{interval: 100ms]", 4, "not YAML: while parsing a flow mapping expected"),
    "a tab": ("pools:\n", "pools:\n\t", 8, "not YAML: a tab; indent with spaces"),
}


@pytest.mark.parametrize("command", [["check"], ["run", "--config"]], ids=["check", "run"])
@pytest.mark.parametrize("name", TABLE)
def test_the_error_of_a_typo_has_its_line_and_the_correction(
    name: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    right, wrong, line, printed = TABLE[name]
    path = tmp_path / "the configuration.yaml"
    path.write_text(GOOD.replace(right, wrong))
    assert main([*command, str(path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    reported = [one for one in captured.err.splitlines() if one.startswith(f"{path}:{line}: ")]
    assert any(printed in one for one in reported), captured.err


@pytest.mark.parametrize("command", [["check"], ["run", "--config"]], ids=["check", "run"])
def test_the_process_exits_with_status_1_and_the_error(
    command: list[str], processes: Processes, tmp_path: Path
) -> None:
    path = tmp_path / "the configuration.yaml"
    path.write_text(GOOD.replace("interval: 100ms", "intervall: 100ms"))
    igw = processes.start([*IGW, *command, path])
    assert igw.wait() == 1
    assert igw.output() == f"{path}:4: scrape.intervall: unknown key; did you mean 'interval'?\n"


async def test_a_typo_in_the_file_of_a_running_agent_changes_nothing_is_counted_and_its_correction_is_applied(
    tmp_path: Path,
) -> None:
    async with a_fleet(tmp_path, 1, lambda healthy: {"pool": healthy}) as fleet:
        await found(fleet.counts, lambda seen: seen.of("igw_pool_endpoints_by_health", state="healthy") == 1)
        good = fleet.file.read_text()
        body = chat("a story", stream=True, ignore_eos=True) | {"max_tokens": 100}
        async with fleet.client.post(fleet.url("pool", PickMode.BUFFERED), json=body) as answer:
            await answer.content.readuntil(b"\n\n")
            await reloaded(fleet, good.replace("staleAfter", "staleAftr"), "failed")
            text = (await answer.read()).decode()
        assert text.endswith("data: [DONE]\n\n")
        (line,) = (one for one in fleet.agent.output().splitlines() if " error " in one)
        assert line.endswith(
            "configuration not reloaded, the old one stays: "
            f"{fleet.file}:5: state.staleAftr: unknown key; did you mean 'staleAfter'?"
        )
        status, answered = await fleet.send("pool", PickMode.FULL_DUPLEX)
        assert (status, answered["object"]) == (200, "chat.completion")
        assert (await fleet.endpoint("pool", fleet.healthy[0]))["stale_after_seconds"] == 2
        await reloaded(fleet, good.replace("staleAfter: 2s", "staleAfter: 3s"), "ok")
        assert (await fleet.endpoint("pool", fleet.healthy[0]))["stale_after_seconds"] == 3


async def reloaded(fleet: GatewayFleet, text: str, result: str) -> None:
    """Write this text to the file, reload it, and wait for this result."""
    fleet.file.write_text(text)
    fleet.agent.signal(signal.SIGHUP)
    await found(fleet.counts, lambda seen: seen.of("igw_reloads_total", result=result) == 1)
