"""A fleet of model servers for a scraper: one nginx on any number of loopback addresses.

The n-th request on a connection gets the n-th page of the sequence, so no endpoint serves the same page twice in a row.
After `PAGES` requests the sequence starts over; the start time on the page stays, so this is not a restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.bench.pages import sequence
from tests.bench.programs import BenchProgram, free_ports, listens

PAGE = Path(__file__).resolve().parents[1] / "recordings" / "pages" / "vllm" / "load_base_seqs4_blocks100.prom"
PAGES = 1000  # a power of ten: the page is chosen by the last digits of the request number


def addresses(port: int, count: int) -> list[str]:
    """`count` endpoints, all of them on this machine."""
    return [f"127.{77 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}:{port}" for number in range(count)]


def nginx_conf(port: int) -> str:
    """Listens on all loopback addresses and serves the next page for each request."""
    return f"""
    daemon off; master_process off; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 65536;
    events {{ worker_connections 32768; multi_accept on; }}
    http {{
        log_format page p; access_log off; root .; sendfile on; tcp_nopush on;
        keepalive_requests 1000000000; keepalive_timeout 3600s;
        open_file_cache max={2 * PAGES} inactive=1h; open_file_cache_valid 1h;
        map $connection_requests $page_number {{ "~(?<last>\\d{{1,{len(str(PAGES - 1))}}})$" $last; }}
        server {{
            listen {port} backlog=16384; allow 127.0.0.0/8; deny all;
            location = /metrics {{
                access_log pages.log page; default_type "text/plain; version=0.0.4"; rewrite ^ /$page_number.prom break;
            }}
            location = /health {{ return 200; }}
            location = /v1/models {{
                default_type application/json; return 200 '{{"object":"list","data":[{{"id":"tiny"}}]}}';
            }}
        }}
    }}
    """


class FleetSize(NamedTuple):
    """A fleet: its number of endpoints, and the seconds between two scrapes, health probes and model probes of one."""

    key: str
    endpoints: int
    interval: float
    health_interval: float = 1.0
    models_interval: float = 10.0

    @property
    def title(self) -> str:
        """The size and interval as text."""
        return f"{self.endpoints:,} endpoints at " + (
            f"{self.interval:g} s" if self.interval >= 1 else f"{self.interval * 1000:g} ms"
        )


class NginxFleet:
    """nginx in its own new `folder`, until `stack` is closed."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        # nginx started by root changes to another user, which must be able to read the pages.
        folder.mkdir()
        folder.chmod(0o755)
        self.page_bytes = _write(folder, sequence(PAGE.read_bytes(), PAGES))
        self._log = folder / "pages.log"
        self.port = free_ports(1)[0]
        (folder / "nginx.conf").write_text(nginx_conf(self.port), encoding="utf-8")
        command: list[str | Path] = ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
        self.child = BenchProgram(command, folder / "nginx.log")
        stack.callback(self.child.stop)
        self.child.wait_until(lambda: listens(self.port))

    def pages(self) -> int:
        """Pages served so far: the log has two bytes for each."""
        return self._log.stat().st_size // 2


def _write(folder: Path, pages: Iterable[bytes]) -> int:
    """Write each page under its numbers; the size of the first page in bytes."""
    size = 0
    width = len(str(PAGES - 1))
    for number, page in enumerate(pages):
        size = size or len(page)
        # The first requests of a connection have fewer digits: request 7 reads 7.prom, request 1007 reads 007.prom.
        names = {str(number), f"{number:0{width}d}"}
        for name in names:
            (folder / f"{name}.prom").write_bytes(page)
    return size
