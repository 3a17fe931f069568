"""The scrapers that the bench compares: the whole agent, and Prometheus.

Both report the age of their readings over HTTP: the agent in `/v1/state`, Prometheus by the timestamp of a sample,
which is the start of its scrape.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import orjson

from tests.bench.nginx_fleet import FleetSize
from tests.bench.programs import BenchProgram, answers, free_ports, read

SIGNAL = "waiting_requests"  # the reading whose age is sampled, by its name in the agent and in Prometheus
SAMPLE = "vllm:num_requests_waiting"
_FAILED = re.compile(rb'^igw_scrapes_total\{[^}]*result="failed"[^}]*\} (\S+)$', re.MULTILINE)


class MeasuredScraper(Protocol):
    """A running scraper, which ends when the exit stack that it was given is closed."""

    name: str
    child: BenchProgram

    def failed(self) -> float:
        """Failed scrapes so far."""
        ...

    def ages(self) -> list[float]:
        """The current age in seconds of each endpoint's reading, where there is one."""
        ...


class AgentScraper:
    """`igw run`, with one pool."""

    name = "agent"

    def __init__(self, folder: Path, endpoints: Sequence[str], size: FleetSize, stack: ExitStack) -> None:
        admin, picker = free_ports(2)
        config = folder / "agent.yaml"
        config.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
            f"scrape: {{interval: {_ms(size.interval)}, timeout: {_ms(min(1.0, 2 * size.interval))}, "
            f"healthInterval: {_ms(size.health_interval)}, modelsInterval: {_ms(size.models_interval)}}}\n"
            f"admin: {{address: '127.0.0.1:{admin}'}}\nlog: {{level: error}}\n"
            f"pools:\n- name: fleet\n  extProcAddress: 127.0.0.1:{picker}\n  endpoints:\n"
            + "".join(f"  - {address}\n" for address in endpoints),
            encoding="utf-8",
        )
        self._url = f"http://127.0.0.1:{admin}"
        self.child = BenchProgram([sys.executable, "-m", "agent", "run", "--config", config], folder / "agent.log")
        stack.callback(self.child.stop)
        self.child.wait_until(lambda: answers(f"{self._url}/readyz"), within=60, every=0.25)

    def failed(self) -> float:
        return sum(float(value) for value in _FAILED.findall(read(f"{self._url}/metrics")))

    def ages(self) -> list[float]:
        document = orjson.loads(read(f"{self._url}/v1/state"))
        signals = [endpoint["signals"][SIGNAL] for pool in document["pools"] for endpoint in pool["endpoints"]]
        return [signal["age_seconds"] for signal in signals if signal["age_seconds"] is not None]


class PrometheusScraper:
    """Debian's Prometheus, with its storage in `folder`. `targets` are groups of its `static_configs`."""

    name = "Prometheus"

    def __init__(self, folder: Path, targets: Sequence[Mapping[str, Any]], interval: float, stack: ExitStack) -> None:
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": _ms(interval), "scrape_timeout": _ms(interval)},
                    "scrape_configs": [{"job_name": "fleet", "static_configs": list(targets)}],
                }
            ),
            encoding="utf-8",
        )
        port = free_ports(1)[0]
        self.url = f"http://127.0.0.1:{port}"
        command: list[str | Path] = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", "--log.level=error"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        self.child = BenchProgram(command, folder / "prometheus.log", cwd=folder)
        stack.callback(self.child.stop)
        self.child.wait_until(lambda: answers(f"{self.url}/-/ready"))

    def failed(self) -> float:
        return 0.0  # not queried, as the query would cost more than the scrapes; its scrape rate shows failures

    def ages(self) -> list[float]:
        return [float(series["value"][1]) for series in self._query(f"time() - timestamp({SAMPLE})")]

    def _query(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = orjson.loads(read(f"{self.url}/api/v1/query?query={quote(query)}"))["data"][
            "result"
        ]
        return found


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
