"""A fleet of model servers for a scraper: nginx on as many loopback addresses as one likes.

The n-th request on a connection gets the n-th page of the sequence, so no endpoint shows the same page twice in a row.
After `FORMS` requests the sequence begins anew; the server's start time stays, so this is no restart.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from tests.bench.children import Child, free_ports, listens
from tests.bench.pages import sequence

PAGE = Path(__file__).resolve().parents[1] / "recordings" / "pages" / "vllm" / "load_base_seqs4_blocks100.prom"
FORMS = 1000  # a power of ten: the page is chosen by the last digits of a number


def addresses(port: int, count: int) -> list[str]:
    """So many endpoints; all of them are this machine."""
    return [f"127.{77 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}:{port}" for number in range(count)]


def nginx_conf(port: int) -> str:
    """Every loopback address, the next page for each request; nobody else is let in."""
    return f"""
    daemon off; master_process off; pid nginx.pid; error_log stderr crit; worker_rlimit_nofile 65536;
    events {{ worker_connections 32768; multi_accept on; }}
    http {{
        log_format page p; access_log off; root .; sendfile on; tcp_nopush on;
        keepalive_requests 1000000000; keepalive_timeout 3600s;
        open_file_cache max={2 * FORMS} inactive=1h; open_file_cache_valid 1h;
        map $connection_requests $form {{ "~(?<last>\\d{{1,{len(str(FORMS - 1))}}})$" $last; }}
        server {{
            listen {port} backlog=16384; allow 127.0.0.0/8; deny all;
            location = /metrics {{
                access_log pages.log page; default_type "text/plain; version=0.0.4"; rewrite ^ /$form.prom break;
            }}
            location = /health {{ return 200; }}
            location = /v1/models {{
                default_type application/json; return 200 '{{"object":"list","data":[{{"id":"tiny"}}]}}';
            }}
        }}
    }}
    """


class Setting(NamedTuple):
    """A fleet: how many endpoints, and the seconds between two scrapes of one; between two questions for health, too,
    and for models."""

    key: str
    endpoints: int
    interval: float
    health_interval: float = 1.0
    models_interval: float = 10.0

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.endpoints:,} endpoints at " + (
            f"{self.interval:g} s" if self.interval >= 1 else f"{self.interval * 1000:g} ms"
        )


class Fleet:
    """nginx in `folder`, which it has for itself, until `stack` is unwound.

    `pages` says how many pages it has served, to whomever.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        # nginx drops to another user where it is started by root: that one must find the pages.
        folder.mkdir()
        folder.chmod(0o755)
        self.page_bytes = _write(folder, sequence(PAGE.read_bytes(), FORMS))
        self._log = folder / "pages.log"
        self.port = free_ports(1)[0]
        (folder / "nginx.conf").write_text(nginx_conf(self.port), encoding="utf-8")
        command: list[str | Path] = ["nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
        self.child = Child(command, folder / "nginx.log")
        stack.callback(self.child.stop)
        self.child.until(lambda: listens(self.port))

    def pages(self) -> int:
        """Pages served so far: the log has two bytes for each."""
        return self._log.stat().st_size // 2


def _write(folder: Path, pages: Iterable[bytes]) -> int:
    """Write the pages as the names that the digits make; returns the bytes of the first."""
    size = 0
    width = len(str(FORMS - 1))
    for number, page in enumerate(pages):
        size = size or len(page)
        # A connection's first requests have fewer digits than the later ones: 7, then 1007 of which 007 is taken.
        names = {str(number), f"{number:0{width}d}"}
        for name in names:
            (folder / f"{name}.prom").write_bytes(page)
    return size
