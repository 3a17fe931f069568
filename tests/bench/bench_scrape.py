"""What a scrape costs, from the bytes of a page to readings and from the socket to a snapshot, beside Prometheus.

    .venv/bin/python -m tests.bench.bench_scrape [--seconds 4] [--rounds 3] [--json]

The page is the recorded one of a busy vLLM (73 kB, 680 samples); nginx serves it in 64 forms that differ in values
that are read, and which form a scrape gets is chosen at random. The agent's loop asks 1,000 loopback addresses, each
once a second over a connection that stays open, into the routing state, of which a snapshot is taken ten times a
second. It is shown alone, and with the counts that the agent publishes of its own work. Prometheus asks 200 of the same
addresses once a second. What is compared takes turns, and each figure is the median of its rounds.

CPU time is what the kernel says that a process used, so nginx is in none of it. Needs nginx and prometheus.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from random import Random
from statistics import median
from typing import NamedTuple

import uvloop

from agent.clock import SystemClock
from agent.engines import engine
from agent.engines.mapping import Extractor
from agent.events import Hook, ignore
from agent.instruments import Instruments
from agent.scrape.loop import ScrapeLoop, Target
from agent.state.store import RoutingStore
from tests.bench.table import Column, Table, bar

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "tests" / "recordings" / "pages" / "vllm" / "load_base_seqs4_blocks100.prom"
FORMS = 64
OURS, THEIRS = 1000, 200  # endpoints, each asked once a second
SNAPSHOTS_A_SECOND = 10
WARM_SECONDS = 2.5
BAR_SCAN_US, BAR_SCRAPE_US, BAR_RATIO = 40.0, 125.0, 0.1


class Run(NamedTuple):
    """CPU microseconds per scrape, scrapes in a second, and how many failed."""

    cpu_us: float
    rate: float
    failed: int


class Counting(RoutingStore):
    """The routing state, with a count of what it was told."""

    pages = failures = 0

    def observed(self, address, extraction, at, took, size):
        self.pages += 1
        super().observed(address, extraction, at, took, size)

    def failed(self, address, reason, detail, at, took):
        self.failures += 1
        super().failed(address, reason, detail, at, took)


# -- the pages ---------------------------------------------------------------------------------------------------------


def forms() -> list[bytes]:
    """The recorded page as it would be at other moments: gauges, and sums of any length.

    The counters from which the agent learns a server's speed stay: a page that goes back in time is a restart.
    """
    chance = Random(3)
    made = []
    for _ in range(FORMS):
        page = PAGE.read_bytes()
        for name, value in {
            "vllm:num_requests_running": f"{chance.randrange(0, 5)}.0",
            "vllm:num_requests_waiting": f"{chance.randrange(0, 120)}.0",
            "vllm:kv_cache_usage_perc": repr(chance.random()),
            "vllm:generation_tokens_total": f"{chance.randrange(9_000, 20_000_000)}.0",
            "vllm:inter_token_latency_seconds_sum": repr(chance.random() * 1000),
            "vllm:time_to_first_token_seconds_sum": repr(chance.random() * 1000),
            "vllm:e2e_request_latency_seconds_sum": repr(chance.random() * 1000),
        }.items():
            pattern = rb"^(" + name.encode() + rb"\{[^\n]*\}) [^\n]*$"
            page, times = re.subn(pattern, rb"\1 " + value.encode(), page, count=1, flags=re.MULTILINE)
            if times != 1:
                sys.exit(f"{PAGE.name} has no {name}")
        made.append(page)
    return made


def nginx_conf(port: int) -> str:
    """Every loopback address, any form of the page for each request; nobody else is let in."""
    share = 100 / FORMS
    choices = "\n".join(f"{share:.2f}% {form};" for form in range(FORMS - 1))
    return f"""
    daemon off; master_process off; pid nginx.pid; error_log stderr crit;
    events {{ worker_connections 4096; }}
    http {{
        access_log off; root .; keepalive_requests 1000000000; keepalive_timeout 3600s;
        split_clients $request_id $form {{ {choices} * {FORMS - 1}; }}
        server {{
            listen {port} backlog=4096; allow 127.0.0.0/8; deny all;
            location = /metrics {{ default_type "text/plain; version=0.0.4"; rewrite ^ /$form.prom break; }}
            location = /count {{ stub_status; }}
        }}
    }}
    """


def addresses(port: int, count: int) -> list[str]:
    return [f"127.77.{number // 250}.{number % 250 + 1}:{port}" for number in range(count)]


# -- measuring ---------------------------------------------------------------------------------------------------------


def scan_us(pages: list[bytes], rounds: int) -> float:
    """CPU microseconds of one page, from its bytes to readings, as an endpoint's extractor meets them in turn."""
    extractor = Extractor(engine("vllm"))
    found = []
    for _ in range(rounds + 1):
        began = time.process_time()
        for _ in range(10):
            for page in pages:
                extractor.extract(page, whole=True)
        found.append((time.process_time() - began) / (10 * len(pages)))
    return median(found[1:]) * 1e6


async def scrape(port: int, seconds: float, hook: Hook) -> Run:
    """What the child process does: only to scrape, and to take snapshots."""
    clock = SystemClock()
    store = Counting("bench", stale_after=3.0, hook=hook)
    where = addresses(port, OURS)
    store.set_endpoints(dict.fromkeys(where, "vllm"), clock.now())
    loop = ScrapeLoop(clock)
    loop.set_targets("bench", [Target(address, "vllm", models_interval=1e9) for address in where], store)
    await asyncio.sleep(WARM_SECONDS)
    pages, failures, cpu, began = store.pages, store.failures, time.process_time(), clock.now()
    while clock.now() - began < seconds:
        await asyncio.sleep(1 / SNAPSHOTS_A_SECOND)
        store.snapshot(clock.now())
    cpu, took, pages = time.process_time() - cpu, clock.now() - began, store.pages - pages
    await loop.stop()
    return Run(cpu / max(pages, 1) * 1e6, pages / took, store.failures - failures)


def ours(port: int, seconds: float, *, counted: bool) -> Run:
    """One run of the agent's loop in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.bench_scrape", "--scrape", str(port), "--seconds", str(seconds)]
    done = subprocess.run([*command, *(["--counted"] if counted else [])], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.decode())
    return Run(*json.loads(done.stdout))


def requests_served(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/count", timeout=5) as answer:
        return int(answer.read().split()[9])


class Prometheus:
    """Debian's, asking the same pages; it stands still while others are measured."""

    def __init__(self, folder: Path, port: int) -> None:
        targets = ", ".join(f"'{address}'" for address in addresses(port, THEIRS))
        (folder / "prometheus.yml").write_text(
            "scrape_configs: [{job_name: pages, scrape_interval: 1s, scrape_timeout: 1s, "
            f"static_configs: [{{targets: [{targets}]}}]}}]\n"
        )
        self._port = port
        self.process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data", "--log.level=error",
             f"--web.listen-address=127.0.0.1:{free_port()}"],
            cwd=folder,
        )  # fmt: skip

    def measured(self, seconds: float) -> Run:
        self.process.send_signal(signal.SIGCONT)
        time.sleep(WARM_SECONDS)
        cpu, served, began = self._cpu(), requests_served(self._port), time.monotonic()
        time.sleep(seconds)
        cpu, served, took = self._cpu() - cpu, requests_served(self._port) - served - 1, time.monotonic() - began
        self.process.send_signal(signal.SIGSTOP)
        return Run(cpu / max(served, 1) * 1e6, served / took, 0)

    def _cpu(self) -> float:
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def stopped_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()  # also ends one that stands still
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            sys.exit("nginx ended before it listened")
        time.sleep(0.05)
    sys.exit("nginx does not listen after 10 s")


class Found(NamedTuple):
    """The runs of each kind."""

    ours: list[Run]
    counted: list[Run]
    prometheus: list[Run]


def compare(pages: list[bytes], seconds: float, rounds: int) -> Found:
    """Serve the pages and let each ask them in turn."""
    nginx_path = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        # nginx drops to another user where it is started by root: that one must find the pages.
        folder.chmod(0o755)
        for number, page in enumerate(pages):
            (folder / f"{number}.prom").write_bytes(page)
        (folder / "nginx.conf").write_text(nginx_conf(port))
        nginx = subprocess.Popen([nginx_path or "nginx", "-p", name, "-c", folder / "nginx.conf", "-e", "stderr"])
        with stopped_at_the_end(nginx):
            wait_for(port, nginx)
            prometheus = Prometheus(folder, port)
            with stopped_at_the_end(prometheus.process):
                prometheus.measured(seconds=1)  # its first scrapes make the series; they are not counted
                found = Found([], [], [])
                for _ in range(rounds):
                    found.ours.append(ours(port, seconds, counted=False))
                    found.prometheus.append(prometheus.measured(seconds))
                    found.counted.append(ours(port, seconds, counted=True))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 0 whether or not the bars were met, for a bench is read and not passed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--scrape", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--counted", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.scrape is not None:
        hook = Instruments(SystemClock()) if args.counted else ignore
        print(json.dumps(uvloop.run(scrape(args.scrape, args.seconds, hook))))
        return 0
    for program in ("nginx", "prometheus"):
        if not shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin"):
            print(f"{program} is not installed: `make packages` installs it")
            return 0
    began = time.monotonic()
    pages = forms()
    scan = scan_us(pages, args.rounds)
    found = compare(pages, args.seconds, args.rounds)
    cost = {kind: median(run.cpu_us for run in runs) for kind, runs in found._asdict().items()}
    rate = {kind: median(run.rate for run in runs) for kind, runs in found._asdict().items()}
    failed = sum(run.failed for run in (*found.ours, *found.counted))
    if args.json:
        print(json.dumps({"scan_us": scan, "cpu_us": cost, "rate": rate, "failed": failed}))
        return 0
    table = Table([Column(f"a page of {len(pages[0]) / 1000:.0f} kB", 44), Column("us of CPU", 10, ".1f"),
                   Column("a second", 9, ".0f"), Column("of Prometheus", 13, ".3f")])  # fmt: skip
    table.row("scan and extract", scan, None, scan / cost["prometheus"])
    table.row("agent: socket to snapshot", cost["ours"], rate["ours"], cost["ours"] / cost["prometheus"])
    table.row("agent: the same, counted in its /metrics", cost["counted"], rate["counted"],
              cost["counted"] / cost["prometheus"])  # fmt: skip
    table.row("Prometheus: socket to its storage", cost["prometheus"], rate["prometheus"], 1.0)
    print(bar("scan and extract, us", scan, BAR_SCAN_US, form=".1f"))
    print(bar("socket to snapshot, us", cost["ours"], BAR_SCRAPE_US, form=".1f"))
    print(bar("socket to snapshot over Prometheus", cost["ours"] / cost["prometheus"], BAR_RATIO, form=".3f"))
    print(
        f"median of {args.rounds} runs of {args.seconds:g} s; {failed} scrapes failed; "
        f"{time.monotonic() - began:.0f} s in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
