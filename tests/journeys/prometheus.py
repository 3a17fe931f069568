"""A real Prometheus for a test: started with a configuration, queried over its HTTP API, stopped with the test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import requests

from tests.processes import Processes
from tests.waiting import until

SCRAPE_SECONDS = 0.25


class Prometheus:
    """One that runs; `url` is its address. `jobs`: name -> targets; `more`: whole `scrape_configs`."""

    def __init__(
        self,
        processes: Processes,
        folder: Path,
        port: int,
        jobs: Mapping[str, Sequence[str]],
        rules: Sequence[Path] = (),
        more: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        interval = f"{SCRAPE_SECONDS * 1000:.0f}ms"
        config = {
            "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": "1s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {"job_name": name, "static_configs": [{"targets": list(targets)}]} for name, targets in jobs.items()
            ]
            + [dict(config) for config in more],
        }
        folder.mkdir()
        path = folder / "prometheus.yml"
        path.write_text(json.dumps(config), encoding="utf-8")  # JSON is valid YAML
        self._process = processes.start(
            [
                "prometheus",
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--log.level=warn",
            ]
        )
        until(self._ready, 30, "Prometheus")

    def _ready(self) -> bool:
        assert self._process.running(), self._process
        try:
            return requests.get(f"{self.url}/-/ready", timeout=5).ok
        except requests.ConnectionError:
            return False

    def query(self, expr: str, at: float | None = None) -> list[tuple[dict[str, str], float]]:
        """The instant vector of an expression: labels and value of each element."""
        parameters: dict[str, Any] = {"query": expr} | ({} if at is None else {"time": at})
        answer = requests.post(f"{self.url}/api/v1/query", data=parameters, timeout=20).json()
        assert answer["status"] == "success", f"{expr}\n{answer}"
        assert answer["data"]["resultType"] == "vector", expr
        return [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]

    def rules(self) -> list[dict[str, Any]]:
        """All rules, as Prometheus has them."""
        groups = requests.get(f"{self.url}/api/v1/rules", timeout=20).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """Every target with its labels, its health and the last error."""
        answer = requests.get(f"{self.url}/api/v1/targets", timeout=20).json()
        found: list[dict[str, Any]] = answer["data"]["activeTargets"]
        return found
