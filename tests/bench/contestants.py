"""Who scrapes a fleet in the bench: the whole agent, and Prometheus.

Both say themselves how old their readings are: the agent in `/v1/state`, Prometheus by the time stamp of a sample,
which is the start of its scrape. Both are asked over HTTP, as a reader would.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

import orjson

from tests.bench.children import Child, answers, free_ports, read
from tests.bench.fleet import Setting

SIGNAL = "waiting_requests"  # the reading whose age is looked at, as each of them calls it
SAMPLE = "vllm:num_requests_waiting"
_FAILED = re.compile(rb'^igw_scrapes_total\{[^}]*result="failed"[^}]*\} (\S+)$', re.MULTILINE)


class Contestant(Protocol):
    """A scraper at work, until the stack that it was given is unwound."""

    name: str
    child: Child

    def failed(self) -> float:
        """Scrapes that failed so far."""
        ...

    def ages(self) -> list[float]:
        """The age in seconds of the reading of each endpoint that has one, now."""
        ...


class Agent:
    """`igw run`, with one pool."""

    name = "agent"

    def __init__(self, folder: Path, endpoints: Sequence[str], setting: Setting, stack: ExitStack) -> None:
        admin, picker = free_ports(2)
        config = folder / "agent.yaml"
        config.write_text(
            "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
            f"scrape: {{interval: {_time(setting.interval)}, timeout: {_time(min(1.0, 2 * setting.interval))}, "
            f"healthInterval: {_time(setting.health_interval)}, modelsInterval: {_time(setting.models_interval)}}}\n"
            f"admin: {{address: '127.0.0.1:{admin}'}}\nlog: {{level: error}}\n"
            f"pools:\n- name: fleet\n  extProcAddress: 127.0.0.1:{picker}\n  endpoints:\n"
            + "".join(f"  - {address}\n" for address in endpoints),
            encoding="utf-8",
        )
        self._url = f"http://127.0.0.1:{admin}"
        self.child = Child([sys.executable, "-m", "agent", "run", "--config", config], folder / "agent.log")
        stack.callback(self.child.stop)
        self.child.until(lambda: answers(f"{self._url}/readyz"), within=60, every=0.25)

    def failed(self) -> float:
        return sum(float(value) for value in _FAILED.findall(read(f"{self._url}/metrics")))

    def ages(self) -> list[float]:
        document = orjson.loads(read(f"{self._url}/v1/state"))
        signals = [endpoint["signals"][SIGNAL] for pool in document["pools"] for endpoint in pool["endpoints"]]
        return [signal["age_seconds"] for signal in signals if signal["age_seconds"] is not None]


class Prometheus:
    """Debian's, with its storage in `folder`."""

    name = "Prometheus"

    def __init__(self, folder: Path, endpoints: Sequence[str], interval: float, stack: ExitStack) -> None:
        (folder / "prometheus.yml").write_text(
            json.dumps(
                {
                    "global": {"scrape_interval": _time(interval), "scrape_timeout": _time(interval)},
                    "scrape_configs": [{"job_name": "fleet", "static_configs": [{"targets": list(endpoints)}]}],
                }
            ),
            encoding="utf-8",
        )
        port = free_ports(1)[0]
        self._url = f"http://127.0.0.1:{port}"
        command: list[str | Path] = ["prometheus", f"--config.file={folder / 'prometheus.yml'}", "--log.level=error"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        self.child = Child(command, folder / "prometheus.log", cwd=folder)
        stack.callback(self.child.stop)
        self.child.until(lambda: answers(f"{self._url}/-/ready"))

    def failed(self) -> float:
        return 0.0  # not asked, for the question would cost it more than scraping does; its rate shows them

    def ages(self) -> list[float]:
        return [float(series["value"][1]) for series in self._ask(f"time() - timestamp({SAMPLE})")]

    def _ask(self, query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = orjson.loads(read(f"{self._url}/api/v1/query?query={quote(query)}"))["data"][
            "result"
        ]
        return found


def _time(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
