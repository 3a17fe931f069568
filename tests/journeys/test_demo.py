"""`igw demo`: it prints a table, and leaves no process or folder however it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import requests

from tests.processes import Process, Processes
from tests.waiting import until

DEMO = [sys.executable, "-m", "agent", "demo"]
SMALL = ["--seconds", "1", "--rate", "12"]
PROC = Path("/proc")


def children(pid: int) -> dict[int, str]:
    """Process id -> command line of the running children of a process."""
    found = {}
    for stat in PROC.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found[int(stat.parent.name)] = (stat.parent / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def running(pids: dict[int, str]) -> list[str]:
    """The command lines of those processes that still run."""
    return [
        command
        for pid, command in pids.items()
        if (PROC / str(pid)).exists() and (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    ]


def fleet(demo: Process) -> dict[int, str]:
    """The six processes of a running demo: four servers, the agent, Envoy."""
    until(lambda: len(children(demo.pid)) == 6, 60, "six processes")
    return children(demo.pid)


@pytest.fixture(scope="module")
def small_table(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str]:
    """Exit status and output of a small demo with two profiles."""
    started = Processes(tmp_path_factory.mktemp("demo"))
    try:
        demo = started.start([*DEMO, "--once", "--port-base", "0", "--profiles", "least-cost,blend", *SMALL])
        return demo.wait(120), demo.output()
    finally:
        started.stop_all()


def row(output: str, label: str) -> list[str]:
    """The cells of a row of a table."""
    (line,) = re.findall(rf"^ *{re.escape(label)}  (.*)$", output, re.MULTILINE)
    return [cell.strip() for cell in re.split(r" {2,}", line.strip())]


def test_the_demo_succeeds_with_a_column_for_each_way_to_pick(small_table: tuple[int, str]) -> None:
    status, output = small_table
    assert status == 0, output
    assert re.search(r"^ +round robin +least-cost +blend *$", output, re.MULTILINE), output


def test_every_cell_that_can_be_known_has_a_number(small_table: tuple[int, str]) -> None:
    _, output = small_table
    for label in ("time to first token, p50", "time to first token, p90"):
        assert all(re.fullmatch(r"[\d.]+ m?s", cell) for cell in row(output, label)), label
    assert all(re.fullmatch(r"[\d.]+ %", cell) for cell in row(output, "prefix hits, counted by servers"))
    assert all(re.fullmatch(r"[\d,]+ us", cell) for cell in row(output, "agent CPU per request"))
    baseline, *picked = row(output, "left the warmest server")
    sent = re.search(r"Results of (\d+) chats", output)
    assert sent
    assert baseline == "–"
    assert all(re.fullmatch(r"\d+", cell) for cell in picked)
    assert row(output, "errors") == ["0"] * 3


def test_every_request_is_counted_at_some_server(small_table: tuple[int, str]) -> None:
    _, output = small_table
    sent = re.search(r"Results of (\d+) chats", output)
    served = re.findall(r"^ *requests at emulated server \d +(\d+) +(\d+) +(\d+)", output, re.MULTILINE)
    assert sent
    assert len(served) == 4
    assert [sum(map(int, column)) for column in zip(*served, strict=True)] == [int(sent[1])] * 3


def test_the_gauges_for_an_autoscaler_are_printed(small_table: tuple[int, str]) -> None:
    _, output = small_table
    assert row(output, "llm_d_epp_ready_endpoints")[1] == "4"
    assert re.fullmatch(r"\d+ ms", row(output, "llm_d_epp_average_queue_size")[2])


def test_with_once_no_address_of_a_stopped_process_is_printed(small_table: tuple[int, str]) -> None:
    _, output = small_table
    assert not re.search(r"https?://|127\.0\.0\.1|localhost|:\d{4,5}\b|Try:", output), output


def test_a_file_gets_no_control_characters(small_table: tuple[int, str]) -> None:
    _, output = small_table
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", output)


def test_a_terminal_without_unicode_still_gets_a_table(processes: Processes) -> None:
    """Latin-1 has neither the dash of an unknown number nor the line below a heading."""
    demo = processes.start([sys.executable, "-c", _TABLE], env={"PYTHONIOENCODING": "latin-1"})
    assert demo.wait() == 0, demo.output()
    assert "| ?|" in demo.output()


_TABLE = """
from agent.demo.report import UNKNOWN, TableRow
from agent.demo.screen import Screen
Screen().table(("", "x"), [TableRow("not known", (UNKNOWN,))])
"""


@pytest.fixture
def serving(processes: Processes, tmp_path: Path) -> Process:
    """A demo that has printed its table and keeps running; its folder is in tmp_path, as SIGKILL leaves it behind."""
    demo = processes.start([*DEMO, "--port-base", "0", *SMALL], env={"TMPDIR": str(tmp_path)})
    demo.wait_for("until Ctrl-C", 120)
    return demo


def test_it_keeps_serving_until_ctrl_c_and_leaves_nothing(serving: Process, tmp_path: Path) -> None:
    match = re.search(r"(http://127\.0\.0\.1:\d+)/v1 +Envoy with the agent", serving.output())
    assert match
    for path in ("/v1/state", "/v1/gauges", "/v1/picks", "/metrics"):
        assert re.search(rf"^  http://127\.0\.0\.1:\d+{path} ", serving.output(), re.MULTILINE), path
    chat = {"model": "emulated", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answer = requests.post(f"{match[1]}/v1/chat/completions", json=chat, timeout=30)
    assert answer.json()["usage"]["completion_tokens"] == 4
    started = fleet(serving)
    serving.signal(signal.SIGINT)
    assert serving.wait() == 0
    assert running(started) == []
    assert not list(tmp_path.glob("igw-demo-*"))
    assert "Traceback" not in serving.output()


def test_sigkill_also_ends_all_processes_of_the_demo(serving: Process) -> None:
    started = fleet(serving)
    serving.signal(signal.SIGKILL)
    assert serving.wait() == -signal.SIGKILL
    until(lambda: not running(started), 20, "the kernel to end the processes of the demo")


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_during_the_start_stops_it_and_leaves_nothing(name: str, status: int, processes: Processes) -> None:
    demo = processes.start([*DEMO, "--once", "--port-base", "0"])
    started = until(lambda: children(demo.pid), 60, "the first process")
    demo.wait_for("Starting")
    demo.signal(getattr(signal, name))
    assert demo.wait() == status
    assert running(started) == []
    assert "Traceback" not in demo.output()


def test_an_agent_that_dies_during_a_run_ends_the_demo_with_a_reason(processes: Processes) -> None:
    demo = processes.start([*DEMO, "--once", "--port-base", "0", "--seconds", "3", "--rate", "12"])
    demo.wait_for("Sending")
    started = fleet(demo)
    (agent,) = (pid for pid, command in started.items() if "agent run" in command)
    os.kill(agent, signal.SIGKILL)
    assert demo.wait(60) == 1
    assert "the agent ended with status -9" in demo.output()
    assert "Traceback" not in demo.output()
    assert "never retrieved" not in demo.output()
    assert running(started) == []


def test_a_port_in_use_is_named_before_anything_is_started(
    processes: Processes, free_ports: Callable[[int], list[int]]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        base = taken.getsockname()[1]
        demo = processes.start([*DEMO, "--once", "--port-base", str(base)])
        assert demo.wait() == 1
    output = demo.output()
    assert re.search(rf"emulated server 1 127\.0\.0\.1:{base},? .*in use by another program", output)
    assert "Starting" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--profiles", "fastest"], "there is no profile 'fastest'; choose from affinity, blend, least-cost"),
        (["--profiles", ""], "--profiles: the list is empty"),
        (["--seconds", "0"], "--seconds 0: must be above 0"),
        (["--rate", "nan"], "--rate nan: must be above 0"),
        (["--prompt-tokens", "10", "--port-base", "0"], "allow at least 256"),
        (["--endpoints", "localhost", "--port-base", "0"], "'localhost' is not HOST:PORT"),
        (["--endpoints", "127.0.0.1:1", "--port-base", "0"], "http://127.0.0.1:1/v1/models does not answer: Conn"),
        (["--endpoints", "127.0.0.1:99999", "--port-base", "0"], "'127.0.0.1:99999' is not HOST:PORT"),
        (["--endpoints", "127.0.0.1:1,127.0.0.1:1", "--port-base", "0"], "127.0.0.1:1, which is listed twice"),
        (["--endpoints", ","], "--endpoints: the list is empty"),
        (["--model", "tiny"], "--model requires --endpoints"),
        (["--overload", "--endpoints", "127.0.0.1:1"], "--overload sends to emulated servers, whose capacity is known"),
    ],
)
def test_a_usage_error_has_a_message_and_no_traceback(flags: list[str], message: str, processes: Processes) -> None:
    demo = processes.start([*DEMO, "--once", *flags])
    assert demo.wait() in {1, 2}
    assert message in demo.output()
    assert "Traceback" not in demo.output()


def test_the_overload_demo_prints_each_priority_without_and_with_flow_control(processes: Processes) -> None:
    demo = processes.start([*DEMO, "--overload", "--once", "--port-base", "0", "--seconds", "3"])
    assert demo.wait(120) == 0, demo.output()
    output = demo.output()
    assert re.search(r"^ +without +with flow control *$", output, re.MULTILINE), output
    found = re.search(r"Results of (\d+) chats in each run", output)
    assert found
    sent = [0, 0]
    for priority in (10, 0, -1):
        label = f"priority {priority}:"
        assert all(re.fullmatch(r"[\d.]+ s|–", cell) for cell in row(output, f"{label} time to first token, p90"))
        assert len(row(output, f"{label} fairness of its two callers")) == 2
        answered = [re.fullmatch(r"(\d+) of (\d+)", cell) for cell in row(output, f"{label} answered")]
        refused = zip(row(output, f"{label} shed"), row(output, f"{label} expired"), strict=True)
        for run, (cell, (shed, expired)) in enumerate(zip(answered, refused, strict=True)):
            assert cell
            assert int(cell[1]) + int(shed) + int(expired) == int(cell[2])
            sent[run] += int(cell[2])
    assert sent == [int(found[1])] * 2
    assert row(output, "all: errors") == ["0", "0"]


def test_given_servers_are_used_and_keep_running(processes: Processes) -> None:
    servers = processes.start(
        [*DEMO[:3], "emulate", "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--max-model-len", "2048"]
    )
    until(lambda: len(re.findall(r"on http", servers.output())) == 2, what="two servers")
    addresses = re.findall(r"on http://(\S+):\s", servers.output())
    flags = ["--once", "--port-base", "0", *SMALL, "--endpoints", ",".join(addresses)]
    demo = processes.start([*DEMO, *flags])
    assert demo.wait(120) == 0, demo.output()
    assert "Model emulated, prompts of up to 1,8" in demo.output()
    assert "no prompt is cached from an earlier run" in demo.output()
    baseline, picked = (int(cell) for cell in row(demo.output(), f"requests at {addresses[0]}"))
    assert baseline > 0
    assert picked >= 0
    assert servers.running()
