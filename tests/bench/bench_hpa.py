"""The custom metrics API with 1,000 endpoints: how old a value is when it is read, and what a read costs.

    .venv/bin/python -m tests.bench.bench_hpa [--endpoints 1000] [--reads 200] [--no-adapter] [--json]

The agent is an `igw run` that scrapes 1,000 endpoints once a second, all of them answered by one nginx. Each endpoint
is a pod. A client reads the list of all pods over TLS, one read after the other on one connection, as the API server's
aggregator does. Then nginx ends, so that every endpoint is down, and the client reads the discovery documents.

The age is that of the oldest of the 1,000 values in an answer, measured in the agent when it answers; times of the API
have whole seconds. The agent, nginx and the client share the machine.

Then the same list is read from the agent and from prometheus-adapter v0.12.0 over Prometheus, one after the other,
while the servers' value is the time of their page: the age is what the client sees. The ages are put through the HPA's
formula at a step of the load (step_overflow.py). It needs Go, and a Kubernetes API server, which are built once.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import re
import ssl
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Final, NamedTuple

from tests.bench.clock_fleet import CLOCK_SECONDS, ClockFleet
from tests.bench.figure_table import FigureTable
from tests.bench.nginx_fleet import NginxFleet, addresses
from tests.bench.programs import BenchProgram, answers, free_ports, missing, prepare_process
from tests.bench.prometheus_adapter import PodsInCluster, PrometheusAdapter
from tests.bench.step_overflow import step_outcome
from tests.cluster.certificates import KeyPair

CUSTOM: Final = "/apis/custom.metrics.k8s.io/v1beta2"
PODS: Final = f"{CUSTOM}/namespaces/llm/pods/%2A/igw_endpoint_waiting_requests"
DISCOVERY: Final = (CUSTOM, "/apis/external.metrics.k8s.io/v1beta1", "/apis")
AGE: Final = "igw_metrics_api_value_age_seconds"
BAR_AGE_SECONDS, BAR_LIST_MS, BAR_DISCOVERY_MS = 1.0, 50.0, 10.0


def report(text: str) -> None:
    """Print the progress to standard error."""
    print(f"  .. {text}", file=sys.stderr, flush=True)


def configuration(endpoints: list[str], admin: int, api: int, interval: str) -> str:
    """The agent's configuration: each endpoint is a pod of the namespace llm."""
    rows = "".join(
        f"\n  - {{address: '{address}', pod: llm/chat-{number}, engine: vllm}}"
        for number, address in enumerate(endpoints)
    )
    return (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"admin: {{address: '127.0.0.1:{admin}'}}\nscrape: {{interval: {interval}}}\n"
        f"metricsApi: {{address: '127.0.0.1:{api}', auth: none}}\n"
        f"pools:\n- name: chat\n  extProcAddress: 127.0.0.1:0\n  endpoints:{rows}\n"
    )


class Reader:
    """A client with one connection to the port of the metrics APIs."""

    def __init__(self, port: int, client: KeyPair | None = None) -> None:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the servers sign their own certificates
        if client is not None:
            context.load_cert_chain(client.certificate, client.key)
        self._connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)

    def read(self, path: str) -> tuple[float, int, bytes]:
        """Seconds of one read, its status and its body."""
        begin = time.perf_counter()
        self._connection.request("GET", path, headers={"Accept": "application/json"})
        response = self._connection.getresponse()
        body = response.read()
        return time.perf_counter() - begin, response.status, body

    def reconnect(self) -> None:
        """Begin again with a new connection."""
        self._connection.close()


def rank(values: list[float], part: float) -> float:
    """The value at a rank from 0 to 1."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def age_bound(admin: int, part: float) -> float:
    """The bound of the bucket in which the age of this part of the reads lies; infinite above the last one."""
    with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics") as response:
        page = response.read().decode()
    buckets = [
        (float(bound), float(count))
        for bound, count in re.findall(rf'^{AGE}_bucket{{.*?le="(.*?)".*}} (\S+)$', page, re.MULTILINE)
    ]
    total = max(count for _, count in buckets)
    return next((bound for bound, count in buckets if count >= part * total), math.inf)


def started(folder: Path, servers: list[str], interval: str, stack: ExitStack) -> tuple[BenchProgram, int, int]:
    """An agent that is ready, the port of its admin server and that of its metrics APIs."""
    admin, api = free_ports(2)
    config = folder / f"igw-{interval}.yaml"
    config.write_text(configuration(servers, admin, api, interval), encoding="utf-8")
    command: list[str | Path] = [sys.executable, "-m", "agent", "run", "--config", config]
    agent = BenchProgram(command, folder / "agent.log")
    stack.callback(agent.stop)
    agent.wait_until(lambda: answers(f"http://127.0.0.1:{admin}/readyz"), 60)
    return agent, admin, api


def measure(table: FigureTable, count: int, reads: int, interval: str) -> None:
    """All figures of one fleet."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        fleet = NginxFleet(folder / "nginx", stack)
        agent, admin, api = started(folder, addresses(fleet.port, count), interval, stack)
        reader = Reader(api)
        agent.wait_until(lambda: reader.read(PODS)[1] == 200, 60)
        report(f"{count:,} endpoints are scraped every {interval}")
        time.sleep(3)
        idle_from = time.monotonic(), agent.cpu_seconds()
        time.sleep(5)
        idle = (agent.cpu_seconds() - idle_from[1]) / (time.monotonic() - idle_from[0])
        times: list[float] = []
        begin, used = time.monotonic(), agent.cpu_seconds()
        for _ in range(reads):
            took, status, body = reader.read(PODS)
            if status != 200:
                sys.exit(f"a read was answered with {status}: {body[:500]!r}")
            times.append(took)
            time.sleep(0.1)
        spent = agent.cpu_seconds() - used - idle * (time.monotonic() - begin)
        items = len(json.loads(body)["items"])
        what = f"{items:,} pods, scraped every {interval}"
        table.row(
            f"age of the oldest value of a read of {what}: p99 at most, s", age_bound(admin, 0.99), BAR_AGE_SECONDS
        )
        table.row("  p50 at most, s", age_bound(admin, 0.5))
        table.row(f"a read of {items:,} pods over TLS: p50, ms", rank(times, 0.5) * 1e3)
        table.row("  p99, ms", rank(times, 0.99) * 1e3, BAR_LIST_MS)
        table.row("  CPU time of the agent, ms", spent / reads * 1e3)
        table.row("cores of the agent without reads", idle)
        fleet.child.stop()
        agent.wait_until(lambda: reader.read(PODS)[1] != 200, 60)
        time.sleep(5)
        found = [reader.read(DISCOVERY[number % len(DISCOVERY)]) for number in range(3 * reads)]
        if any(status != 200 for _, status, _ in found):
            sys.exit("discovery was refused")
        table.row("discovery while every endpoint is down: p50, ms", rank([took for took, _, _ in found], 0.5) * 1e3)
        table.row("  p99, ms", rank([took for took, _, _ in found], 0.99) * 1e3, BAR_DISCOVERY_MS)


class Ages(NamedTuple):
    """Seconds of each read, the age of the oldest value of each, and the ages of all values."""

    times: list[float]
    oldest: list[float]
    ages: list[float]


def quantity(text: str) -> float:
    """`3500m` -> 3.5."""
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def ages_at_read(reader: Reader, path: str, reads: int) -> Ages:
    """The reads of a list of the pods of a `ClockFleet`."""
    times, oldest, ages = [], [], []
    for _ in range(reads):
        took, status, body = reader.read(path)
        now = time.time()
        if status != 200:
            sys.exit(f"a read was answered with {status}: {body[:500]!r}")
        found = [(now - quantity(item["value"])) % CLOCK_SECONDS for item in json.loads(body)["items"]]
        times.append(took)
        oldest.append(max(found))
        ages += found
        time.sleep(0.37)  # no divisor of the scrape intervals and of the caches
    return Ages(times, oldest, ages)


def beside(table: FigureTable, count: int, reads: int) -> None:
    """The same list of pods, read from the agent and from prometheus-adapter, one system at a time."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.chmod(0o755)
        fleet = ClockFleet(folder / "nginx", stack)
        servers = {f"chat-{number}": address for number, address in enumerate(addresses(fleet.port, count))}
        report(f"a Kubernetes API server with {count:,} pods starts")
        (folder / "plane").mkdir()
        cluster = PodsInCluster(folder / "plane", "llm", list(servers), stack)
        for interval in ("1s", "500ms"):
            compared(table, f"the agent at {interval}", of_agent(folder, list(servers.values()), interval, reads))
        for seconds in (15.0, 5.0):
            found = of_adapter(folder, cluster, servers, seconds, reads)
            compared(table, f"prometheus-adapter at {seconds:g} s", found)


def of_agent(folder: Path, servers: list[str], interval: str, reads: int) -> Ages:
    """What a reader of the agent gets."""
    with ExitStack() as stack:
        agent, _, api = started(folder, servers, interval, stack)
        reader = Reader(api)
        agent.wait_until(lambda: reader.read(PODS)[1] == 200, 60)
        report(f"the agent is read, which scrapes every {interval}")
        return ages_at_read(reader, PODS, reads)


def of_adapter(folder: Path, cluster: PodsInCluster, servers: dict[str, str], seconds: float, reads: int) -> Ages:
    """What a reader of prometheus-adapter gets."""
    with ExitStack() as stack:
        place = folder / f"adapter-{seconds:g}"
        place.mkdir()
        adapter = PrometheusAdapter(place, cluster, "llm", servers, seconds, stack)
        reader = Reader(adapter.port, cluster.client)
        adapter.child.wait_until(lambda: complete(reader, adapter.path, len(servers)), 120, 1)
        report(f"prometheus-adapter is read, over Prometheus at {seconds:g} s")
        return ages_at_read(reader, adapter.path, reads)


def complete(reader: Reader, path: str, count: int) -> bool:
    """Whether the list has all pods."""
    try:
        _, status, body = reader.read(path)
    except (OSError, http.client.HTTPException):  # not up yet
        reader.reconnect()
        return False
    return status == 200 and len(json.loads(body)["items"]) == count


def compared(table: FigureTable, name: str, found: Ages) -> None:
    """The rows of one system."""
    times, oldest, ages = found
    outcome = step_outcome(ages)
    table.row(f"{name}: age of a value at a read: p50, s", rank(ages, 0.5))
    table.row("  of the oldest value of a read: p99, s", rank(oldest, 0.99))
    table.row("  a read: p50, ms", rank(times, 0.5) * 1e3)
    table.row("  p99, ms", rank(times, 0.99) * 1e3)
    table.row("  a step of two pods, 240 s to start: overflow, %", outcome.overflow * 100)
    table.row("  seconds until the HPA adds replicas: p50", outcome.delay)
    table.row("  p99", outcome.delay_p99)


def main(arguments: list[str] | None = None) -> int:
    """Print the table; always 0, also for a missed bar."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--endpoints", type=int, default=1000)
    parser.add_argument("--reads", type=int, default=200)
    parser.add_argument("--intervals", default="1s,500ms", help="scrape intervals, separated by commas")
    parser.add_argument("--no-adapter", action="store_true", help="without prometheus-adapter, which is built with Go")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    args = parser.parse_args(arguments)
    absent = missing("nginx", *(() if args.no_adapter else ("prometheus",)))
    if absent:
        print(f"Not installed: {', '.join(absent)}. Run: make bench-packages")
        return 0
    prepare_process()
    table = FigureTable(quiet=args.json)
    for interval in args.intervals.split(","):
        measure(table, args.endpoints, args.reads, interval)
    if not args.no_adapter:
        beside(table, args.endpoints, args.reads)
    if args.json:
        for figure in table.figures:
            print(json.dumps(figure))
    return 0


if __name__ == "__main__":
    sys.exit(main())
