"""The command `igw emulate`: its ready line, its exit status, its error messages."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.error import URLError

import pytest

from tests.processes import Processes
from tests.waiting import until

COMMAND = [sys.executable, "-m", "agent", "emulate"]
READY = r"^tiny on http://127\.0\.0\.1:(\d+): 64 requests per batch, 4095 blocks of 16 tokens, adapters lora-a$"


def get(port: str, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_server_prints_a_ready_line_serves_and_stops_on_a_signal(processes: Processes, number) -> None:
    flags = ["--listen", "127.0.0.1:0", "--model", "tiny", "--lora", "lora-a", "--max-loras", "2"]
    server = processes.start([*COMMAND, *flags])
    port = server.wait_for(READY)[1]
    assert [model["id"] for model in json.loads(get(port, "/v1/models"))["data"]] == ["tiny", "lora-a"]
    page = get(port, "/metrics").decode()
    resident = next(line for line in page.splitlines() if line.startswith("process_resident_memory_bytes "))
    assert float(resident.split()[1]) > 10e6
    server.signal(number)
    assert server.wait() == 0
    assert "Traceback" not in server.output()


def test_several_servers_of_one_process_share_no_state(processes: Processes) -> None:
    server = processes.start([*COMMAND, "--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"])
    server.wait_for(r"(?s)http://.*http://")
    first, second = re.findall(r"http://127\.0\.0\.1:(\d+)", server.output())
    request = urllib.request.Request(
        f"http://127.0.0.1:{first}/v1/completions",
        data=b'{"prompt": "x", "max_tokens": 2}',
        headers={"content-type": "application/json"},
    )
    urllib.request.urlopen(request, timeout=10).read()
    counted = b'vllm:generation_tokens_total{engine="0",model_name="emulated"} 2.0'
    assert counted in get(first, "/metrics")
    assert counted not in get(second, "/metrics")


def test_a_port_in_use_is_the_only_message(processes: Processes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = processes.start([*COMMAND, "--listen", f"127.0.0.1:{port}"])
        assert server.wait() == 1
    assert server.output() == f"igw emulate: cannot listen on 127.0.0.1:{port}: Address already in use\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-blocks", "20"], "raise num_blocks to 513"),
        (["--lora", "a"], "needs max_loras of at least 1"),
        (["--listen", "8000"], "'8000' is not HOST:PORT, such as 127.0.0.1:8000"),
        (["--listen", "127.0.0.1:99999"], "is not HOST:PORT"),
    ],
)
def test_invalid_flags_are_refused_with_a_valid_alternative(processes: Processes, flags, message) -> None:
    server = processes.start([*COMMAND, *flags])
    assert server.wait() == 2
    assert message in server.output()
    assert "Traceback" not in server.output()


def test_a_server_stops_during_its_start_up_time(processes: Processes) -> None:
    server = processes.start([*COMMAND, "--listen", "127.0.0.1:0", "--startup-seconds", "1000"])
    handled = until(lambda: handles_sigterm(server.pid))
    assert handled
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.output() == ""


def handles_sigterm(pid: int) -> bool:
    """Whether the process has installed its own handler."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def test_the_fault_die_ends_the_process_at_once(processes: Processes) -> None:
    server = processes.start([*COMMAND, "--listen", "127.0.0.1:0"])
    port = server.wait_for(r"http://127\.0\.0\.1:(\d+)")[1]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/emulator/faults",
        data=b'{"die": true}',
        headers={"content-type": "application/json"},
    )
    with pytest.raises((URLError, HTTPException, ConnectionError)):
        urllib.request.urlopen(request, timeout=10)
    assert server.wait() == 137
