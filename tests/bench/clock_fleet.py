"""Model servers whose number of waiting requests is the time of the page, so that a reader knows the age of a value."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tests.bench.programs import BenchProgram, free_ports, listens

# nginx's `$msec` is the time in seconds with three digits: exact in thousandths, as quantities of Kubernetes are. A
# number of requests is below a million, so that the page has the time modulo this.
CLOCK_SECONDS: Final = 100_000
_LINES: Final = (
    "# TYPE vllm:num_requests_waiting gauge",
    'vllm:num_requests_waiting{engine=\\"0\\",model_name=\\"tiny\\"} $clock',
    "# TYPE vllm:num_requests_running gauge",
    'vllm:num_requests_running{engine=\\"0\\",model_name=\\"tiny\\"} 1',
    "# TYPE vllm:kv_cache_usage_perc gauge",
    'vllm:kv_cache_usage_perc{engine=\\"0\\",model_name=\\"tiny\\"} 0.5',
)
_PAGE: Final = "".join(rf"{line}\n" for line in _LINES)


def nginx_conf(port: int) -> str:
    """Listens on all loopback addresses."""
    return f"""
    daemon off; master_process off; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 65536;
    events {{ worker_connections 32768; multi_accept on; }}
    http {{
        access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;
        default_type "text/plain; version=0.0.4";
        map $msec $clock {{ "~(?<last>\\d{{5}}\\.\\d+)$" $last; }}
        server {{
            listen {port} backlog=16384; allow 127.0.0.0/8; deny all;
            location = /metrics {{ return 200 "{_PAGE}"; }}
            location = /health {{ return 200; }}
            location = /v1/models {{
                default_type application/json; return 200 '{{"object":"list","data":[{{"id":"tiny"}}]}}';
            }}
        }}
    }}
    """


class ClockFleet:
    """nginx in its own new `folder`, until `stack` is closed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        folder.mkdir()
        folder.chmod(0o755)
        self.port = free_ports(1)[0]
        (folder / "nginx.conf").write_text(nginx_conf(self.port), encoding="utf-8")
        command: list[str | Path] = ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
        self.child = BenchProgram(command, folder / "nginx.log")
        stack.callback(self.child.stop)
        self.child.wait_until(lambda: listens(self.port))
