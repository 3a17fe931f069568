"""Every query of the dashboard, run by a real Prometheus on a live fleet, agrees with the model servers' own pages.

The fleet: two emulated servers and one address at which nothing listens, Envoy, and the agent. Prometheus scrapes the
agent and the servers. Under a load of which a part stays in the servers, every query is compared with its truth, which
is computed from the servers' own pages (see `dashboards/definitions.py`).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests

from agent.envoy import process as envoy
from agent.envoy.render import EnvoyConfig, EnvoyListener, EnvoyPool, PickMode, bootstrap
from agent.signals import HISTOGRAMS
from dashboards.definitions import panels
from dashboards.panel import Panel, Query
from tests.journeys.prometheus import SCRAPE_SECONDS, Prometheus
from tests.processes import ROOT, Processes
from tests.promql import family, metrics
from tests.waiting import until

IGW = [sys.executable, "-m", "agent"]
INTERVAL_SECONDS = 0.2
RULES = ROOT / "alerts" / "igw.rules.yaml"
QUERIES = [(panel, query) for panel in panels() for query in panel.queries]
# Slow enough that requests last as long as the test, with batches so small that some requests have to wait.
SERVER = {
    "max-num-seqs": 4,
    "step-seconds": 0.1,
    "step-seconds-per-request": 0,
    "prefill-tokens-per-second": 20_000,
    "num-blocks": 1_000,
    "max-model-len": 6_000,
}
HELD_TOKENS = 4_000  # at ten a second
SYSTEM = "You are a careful clerk who answers in one line. " * 40  # 490 tokens that all chats share


class DashboardFleet(NamedTuple):
    """The loaded fleet: the time at which all queries are evaluated, and the values of the truths' variables."""

    prometheus: Prometheus
    at: float
    filled: dict[str, str]
    pages: dict[str, str]
    known: frozenset[str]


class ServerLoad:
    """The client: chats through Envoy, and invalid bodies."""

    def __init__(self, url: str, pool: ThreadPoolExecutor) -> None:
        self._url = url
        self._pool = pool
        self._number = 0

    def hold(self, tokens: int = HELD_TOKENS) -> Future[requests.Response]:
        """Start a chat with a prefix of its own, by default one that outlasts the test."""
        self._number += 1
        return self._chat([{"role": "user", "content": f"{self._number} is the number. " * 200}], tokens)

    def short(self) -> Future[requests.Response]:
        """Start a short chat whose prefix is that of all others."""
        self._number += 1
        question = {"role": "user", "content": f"{self._number} " * 30}
        return self._chat([{"role": "system", "content": SYSTEM}, question], 3)

    def _chat(self, messages: list[dict[str, str]], tokens: int) -> Future[requests.Response]:
        body = {"model": "emulated", "messages": messages, "max_tokens": tokens, "ignore_eos": True}
        return self._pool.submit(requests.post, self._url, json=body, timeout=300)

    def burst(self, chats: int, refused: int) -> None:
        """Send this many short chats, three at a time, and this many invalid bodies; return when all have ended."""
        for _ in range(chats // 3):
            for answer in [self.short() for _ in range(3)]:
                assert answer.result(60).status_code == 200
        for _ in range(refused):
            assert requests.post(self._url, data="{", timeout=60).status_code == 400


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def value(page: str, name: str) -> float:
    """The sum of a family's samples on a page."""
    return sum(float(number) for number in re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", page, re.MULTILINE))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], list[int]]) -> Iterator[DashboardFleet]:
    """The fleet under load, after everything that is compared was scraped."""
    home = tmp_path_factory.mktemp("a live dashboard")
    processes = Processes(home)
    with ThreadPoolExecutor(32) as pool, ExitStack() as stack:
        stack.callback(processes.stop_all)
        yield _loaded(processes, home, pool, free_ports(6), stack)


def _loaded(
    processes: Processes, home: Path, pool: ThreadPoolExecutor, ports: list[int], stack: ExitStack
) -> DashboardFleet:
    first, second, dead, picker, admin, own = ports
    servers = [f"127.0.0.1:{first}", f"127.0.0.1:{second}"]
    addresses = [*servers, f"127.0.0.1:{dead}"]
    flags = [word for name, number in SERVER.items() for word in (f"--{name}", str(number))]
    listen = [word for address in servers for word in ("--listen", address)] + ["--accelerator", "dcgm"]
    emulator = processes.start([*IGW, "emulate", *listen, *flags])
    until(lambda: emulator.output().count("on http") == 2, what="two servers")
    file = home / "igw.yaml"
    file.write_text(json.dumps(configuration(servers, dead, picker, admin)))
    agent = processes.start([*IGW, "run", "--config", str(file)])
    agent.wait_for("admin: ")
    until(lambda: requests.get(f"http://127.0.0.1:{admin}/readyz", timeout=20).ok, what="an agent that can pick")
    settings = EnvoyConfig(
        (EnvoyPool("default", tuple(addresses), f"127.0.0.1:{picker}"),),
        (EnvoyListener("in", "127.0.0.1:0", "default", PickMode.BUFFERED),),
    )
    proxy = asyncio.run(envoy.start(bootstrap(settings), home / "envoy", concurrency=1))
    stack.callback(lambda: asyncio.run(proxy.stop()))
    load = ServerLoad(f"http://127.0.0.1:{proxy.ports['in']}/v1/chat/completions", pool)
    jobs = {"servers": addresses, "agent": [f"127.0.0.1:{admin}"]}
    prometheus = Prometheus(processes, home / "prometheus", own, jobs, [RULES])

    def scraped_since(moment: float) -> bool:
        """Whether Prometheus has scraped all targets after `moment`, and the agent its servers before that."""
        found = prometheus.query("min(timestamp(igw_pool_endpoints) or timestamp(vllm:num_requests_running))")
        return bool(found) and found[0][1] > moment + INTERVAL_SECONDS + SCRAPE_SECONDS

    def pages() -> dict[str, str]:
        return {address: requests.get(f"http://{address}/metrics", timeout=20).text for address in servers}

    def in_servers(chats: int) -> bool:
        found = pages().values()
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting")
        return sum(value(page, name) for page in found for name in names) == chats

    def waiting() -> float:
        return value(requests.get(f"http://127.0.0.1:{admin}/metrics", timeout=20).text, "igw_flow_held_requests")

    # Every series exists before the window begins; two requests are in the servers all the time.
    held = [load.hold() for _ in range(2)]
    until(lambda: in_servers(2), what="two held requests")
    load.burst(6, refused=2)
    assert {answer.result(120).status_code for answer in [load.hold(20) for _ in range(13)]} == {200}
    settled = time.time()
    until(lambda: scraped_since(settled), what="scrapes before the window")
    began, cpu = time.time(), cpu_seconds(agent.pid)
    load.burst(45, refused=4)
    soon_over = load.hold(60)
    until(lambda: in_servers(3), what="the one that is soon over at a server")  # else it may be the one that waits
    held += [load.hold() for _ in range(11)]  # thirteen, for eight slots and four in the queues of the servers
    assert soon_over.result(120).status_code == 200
    until(lambda: in_servers(12) and waiting() == 1, what="all but one of them at the servers")
    full = time.time()
    until(lambda: scraped_since(full), what="scrapes of the held load")
    at = time.time()
    window = int(at - began)
    assert not any(answer.done() for answer in held)
    filled = {
        "window_seconds": str(window),
        "window": f"{window}s",
        "interval_seconds": str(INTERVAL_SECONDS),
        "refused": "4",
        "in_flight": "13",
        "agent_cpu_ratio": str((cpu_seconds(agent.pid) - cpu) / (time.time() - began)),
        "agent_resident_bytes": str(resident_bytes(agent.pid)),
        "__rate_interval": f"{window}s",
        "pool": ".*",
    }
    known = frozenset(family(labels["__name__"]) for labels, _ in prometheus.query('{job="agent"}', at))
    return DashboardFleet(prometheus, at, filled, pages(), known)


def configuration(servers: list[str], dead: int, picker: int, admin: int) -> dict[str, Any]:
    """The agent's configuration: the servers with their devices, and the address at which nothing listens."""
    interval = f"{INTERVAL_SECONDS * 1000:.0f}ms"
    pool = {
        "extProcAddress": f"127.0.0.1:{picker}",
        "endpoints": [
            *({"address": address, "pod": f"default/emulated-{address.partition(':')[2]}"} for address in servers),
            f"127.0.0.1:{dead}",
        ],
        "accelerators": [
            {"source": "dcgm", "address": address, "path": "/accelerator/metrics", "interval": interval}
            for address in servers
        ],
    }
    return {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        # A budget large enough to change nothing; it makes the budget's metrics appear.
        "scrape": {"interval": interval, "histograms": [*HISTOGRAMS], "budget": {"scrapesPerSecond": 1000}},
        "admin": {"address": f"127.0.0.1:{admin}"},
        "flowControl": {
            "defaultRequestTTL": "10m",
            "saturationDetector": {"type": "concurrency", "maxConcurrency": 6},
        },
        "pools": [pool],
    }


def filled_in(expr: str, filled: dict[str, str]) -> str:
    return re.sub(r"\$(\w+)", lambda found: filled[found[1]], expr)


def by_label(found: list[tuple[dict[str, str], float]], *, of_servers: bool) -> dict[frozenset[tuple[str, str]], float]:
    """The elements by the labels that both sides share; the servers' `instance` is the agent's `server`."""
    shared: dict[frozenset[tuple[str, str]], float] = {}
    for labels, number in found:
        kept = {name: text for name, text in labels.items() if name in {"server", "state", "status", "reason"}}
        kept |= {name: text for name, text in labels.items() if name in {"signal", "gauge", "priority", "fairness_id"}}
        if of_servers and "instance" in labels:
            kept["server"] = labels["instance"]
        key = frozenset(kept.items())
        assert key not in shared, f"two elements with the labels {kept}"
        shared[key] = number
    return shared


@pytest.mark.parametrize(("panel", "query"), QUERIES, ids=[f"{panel.title}-{query.legend}" for panel, query in QUERIES])
def test_a_query_agrees_with_the_servers_pages(panel: Panel, query: Query, fleet: DashboardFleet) -> None:
    shown = by_label(fleet.prometheus.query(filled_in(query.expr, fleet.filled), fleet.at), of_servers=False)
    true = by_label(fleet.prometheus.query(filled_in(query.truth, fleet.filled), fleet.at), of_servers=True)
    assert true, "nothing to compare with"
    assert shown.keys() == true.keys()
    for key, number in shown.items():
        if query.bound == "at_most":
            assert 0 <= number <= true[key], dict(key)
        else:
            assert number == pytest.approx(true[key], rel=query.within, abs=1e-9), dict(key)


@pytest.mark.parametrize(
    "name", ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:request_success_total"]
)
def test_the_truths_are_computed_from_what_the_servers_pages_show(name: str, fleet: DashboardFleet) -> None:
    for address, page in fleet.pages.items():
        ((_, number),) = fleet.prometheus.query(f'sum({name}{{instance="{address}"}})', fleet.at)
        assert number == value(page, name)


def test_the_load_gives_every_panel_something_to_show(fleet: DashboardFleet) -> None:
    pages = fleet.pages.values()
    assert all(value(page, "vllm:num_requests_running") > 0 for page in pages)
    assert sum(value(page, "vllm:num_requests_waiting") for page in pages) >= 3
    assert sum(value(page, "vllm:request_success_total") for page in pages) == 65
    assert sum(value(page, "vllm:prefix_cache_hits_total") for page in pages) > 1_000


def test_prometheus_evaluates_every_rule_without_an_error(fleet: DashboardFleet) -> None:
    found: list[dict[str, Any]] = []

    def evaluated() -> bool:
        found[:] = fleet.prometheus.rules()
        return all(rule["health"] != "unknown" for rule in found)

    until(evaluated, what="a round of evaluations")
    assert len(found) == RULES.read_text(encoding="utf-8").count(" expr:")
    assert {rule["name"]: rule.get("lastError") for rule in found if rule["health"] != "ok"} == {}


def test_one_of_three_servers_down_is_a_warning_and_no_critical_alert(fleet: DashboardFleet) -> None:
    pending = {rule["name"] for rule in fleet.prometheus.rules() if rule.get("state") in {"pending", "firing"}}
    assert "InferenceServerNotHealthy" in pending
    critical = {
        rule["name"] for rule in fleet.prometheus.rules() if rule.get("labels", {}).get("severity") == "critical"
    }
    assert {"InferencePoolNoReadyEndpoints", "InferencePoolDegraded", "InferencePoolUnobserved"} <= critical
    assert not pending & critical


def test_all_metrics_of_the_dashboard_are_on_the_agents_page(fleet: DashboardFleet) -> None:
    selected = {family(name) for _, query in QUERIES for name in metrics(query.expr)}
    assert selected - fleet.known == set()
