"""`igw run` as a process: output, signals, exit status, and a port in use."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.processes import Process, Processes
from tests.waiting import until

RUN = [sys.executable, "-m", "agent", "run"]
FREE_PORTS = ["--admin-address", "127.0.0.1:0", "--ext-proc-address", "127.0.0.1:0"]
DEAD = "127.0.0.1:1"  # no process listens on this port; the agent runs regardless


@pytest.fixture
def taken() -> Iterator[str]:
    """An address on which another program listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        yield f"127.0.0.1:{one.getsockname()[1]}"


def write(path: Path, more: str = "", admin: str = "127.0.0.1:0") -> Path:
    path.write_text(
        f"apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nadmin: {{address: '{admin}'}}\n"
        f"reload: {{interval: 1h}}\npools:\n- extProcAddress: 127.0.0.1:0\n  endpoints: ['{DEAD}']\n{more}"
    )
    return path


def admin(process: Process) -> str:
    return process.wait_for(r"admin: (http://127\.0\.0\.1:\d+)")[1]


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_the_agent_stops_on_a_signal_with_status_0(name: str, processes: Processes, tmp_path: Path) -> None:
    agent = processes.start([*RUN, "--config", write(tmp_path / "a file.yaml")])
    agent.wait_for("is listening")
    agent.signal(getattr(signal, name))
    assert agent.wait() == 0
    assert "Traceback" not in agent.output()


def test_the_limit_of_open_files_is_raised_to_the_hard_limit(processes: Processes, tmp_path: Path) -> None:
    low = ["sh", "-c", 'ulimit -Sn 64 && exec "$@"', "sh"]
    agent = processes.start([*low, *RUN, "--config", write(tmp_path / "file.yaml")])
    agent.wait_for("is listening")
    limits = Path(f"/proc/{agent.pid}/limits").read_text(encoding="ascii")
    found = re.search(r"^Max open files +(\d+) +(\d+)", limits, re.MULTILINE)
    assert found is not None
    assert found[1] == found[2]


def test_the_admin_port_serves_the_paths_that_the_start_message_lists(processes: Processes) -> None:
    flags = ["--endpoints", DEAD, "--ext-proc-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0"]
    agent = processes.start([*RUN, *flags])
    base = admin(agent)
    listed = re.findall(r"(/\S+)", agent.wait_for(r"admin: \S+  (.*)")[1])
    pages = ["/metrics", "/v1/state", "/v1/gauges", "/v1/picks", "/v1/flow", "/v1/scaling", "/healthz"]
    assert listed == [*pages[:2], "/v1/state/watch", *pages[2:], "/readyz"]
    for path in pages:
        assert read(base + path)
    state = json.loads(read(base + "/v1/state"))
    assert [endpoint["address"] for endpoint in state["pools"][0]["endpoints"]] == [DEAD]


def test_sighup_reloads_the_file_and_counts_the_reload(processes: Processes, tmp_path: Path) -> None:
    path = write(tmp_path / "igw.yaml")
    agent = processes.start([*RUN, "--config", path])
    base = admin(agent)
    for more, result in (("  profile: blend\n", "ok"), ("  profil: blend\n", "failed")):
        write(path, more)
        agent.signal(signal.SIGHUP)
        counted = f'igw_reloads_total{{result="{result}"}} 1.0'
        until(partial(lambda line: line in read(base + "/metrics"), counted), what=counted)
    assert f"{path}:8: pools[0].profil: unknown key; did you mean 'profile'?" in agent.output()
    assert agent.running()


@pytest.mark.parametrize(
    ("flag", "what", "option"),
    [
        ("--admin-address", "admin address", "--admin-address or admin.address"),
        (
            "--ext-proc-address",
            "picker address of pool default",
            "--ext-proc-address or extProcAddress",
        ),
    ],
)
def test_the_error_of_a_port_in_use_names_the_option(
    flag: str, what: str, option: str, taken: str, processes: Processes, free_ports: Callable[[int], list[int]]
) -> None:
    one, other = free_ports(2)
    addresses = {"--admin-address": f"127.0.0.1:{one}", "--ext-proc-address": f"127.0.0.1:{other}", flag: taken}
    flags = [word for pair in addresses.items() for word in pair]
    agent = processes.start([*RUN, "--endpoints", DEAD, *flags])
    assert agent.wait() == 1
    assert agent.output() == f"igw: {what} {taken} is in use by another program; choose another with {option}\n"


def test_the_error_of_an_address_of_another_machine_names_the_option(processes: Processes) -> None:
    agent = processes.start(
        [*RUN, "--endpoints", DEAD, "--admin-address", "127.0.0.1:0", "--ext-proc-address", "192.0.2.1:9002"]
    )
    assert agent.wait() == 1
    assert agent.output() == (
        "igw: picker address of pool default 192.0.2.1:9002 is not an address of this machine; "
        "choose another with --ext-proc-address or extProcAddress\n"
    )


def test_a_file_without_pools_does_not_run(processes: Processes) -> None:
    path = Path(__file__).resolve().parents[2] / "deploy/examples/llm-d.yaml"
    agent = processes.start([*RUN, "--config", path])
    assert agent.wait() == 1
    assert (
        agent.output()
        == f"igw: {path}: there is no pool to serve; add pools: with a name, and endpoints or an inferencePool\n"
    )


def test_log_lines_are_json_if_configured(processes: Processes, tmp_path: Path) -> None:
    agent = processes.start([*RUN, "--config", write(tmp_path / "igw.yaml", "log: {format: json}\n")])
    line = agent.wait_for(r"^\{.*\}$|\n(\{.*\})\n")
    assert json.loads(line[0].strip())["pool"] == "default"


def test_a_warning_of_a_library_is_a_log_line(processes: Processes, tmp_path: Path) -> None:
    path = write(tmp_path / "igw.yaml", "log: {format: json}\n")
    program = (
        "import logging, sys\n"
        "from agent.app import process\n"
        "from agent.__main__ import main\n"
        "serve = process.serve\n"
        "def talking(*args):\n"
        "    logging.getLogger('a.library').warning('is old')\n"
        "    return serve(*args)\n"
        "process.serve = talking\n"
        f"main(['run', '--config', {str(path)!r}])\n"
    )
    agent = processes.start([sys.executable, "-c", program])
    line = json.loads(agent.wait_for(r"^\{.*is old.*\}$|\n(\{.*is old.*\})\n")[0].strip())
    assert (line["level"], line["logger"], line["message"]) == ("warning", "a.library", "is old")


def test_the_agent_runs_without_the_packages_of_its_extras(processes: Processes) -> None:
    """Those of `[kubernetes]`, `[tls]`, `[gke]` and `[nvml]`: `make demo` and a plain installation lack them."""
    program = (
        "import sys\n"
        "class NotInstalled:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('cryptography', 'kubernetes', 'pynvml') or name == 'google.cloud':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NotInstalled())\n"
        "from agent.__main__ import main\n"
        f"main(['run', '--endpoints', {DEAD!r}, *{FREE_PORTS!r}])\n"
    )
    agent = processes.start([sys.executable, "-c", program])
    assert agent.wait_for(r"is listening")
