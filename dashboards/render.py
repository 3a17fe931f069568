"""The dashboard as Grafana's JSON.

`python -m dashboards.render` writes it to `dashboards/grafana/igw.json`, to be imported by hand, from a provisioned
folder or from a ConfigMap. Panels are laid out from left to right, and wrap to a new line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from dashboards.definitions import DESCRIPTION, ROWS, TITLE, UID
from dashboards.panel import Panel, Query

FILE: Final = Path(__file__).parent / "grafana" / "igw.json"
SCHEMA_VERSION: Final = 39  # Grafana 11; newer versions migrate it on load
WIDTH: Final = 24
HEIGHT: Final = 8
_DATASOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
_COLORS: Final = ("green", "yellow", "red")


def dashboard() -> dict[str, Any]:
    """The dashboard, ready for `json.dump`."""
    return {
        "uid": UID,
        "title": TITLE,
        "description": DESCRIPTION,
        "tags": ["inference", "llm"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "links": [],
        "templating": {"list": [_datasource_variable(), _pool_variable()]},
        "panels": _panels(),
    }


def text() -> str:
    """The content of FILE."""
    return json.dumps(dashboard(), indent=2, ensure_ascii=False) + "\n"


def _datasource_variable() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
        "includeAll": False,
        "multi": False,
        "current": {},
        "options": [],
    }


def _pool_variable() -> dict[str, Any]:
    query = "label_values(igw_pool_endpoints, pool)"
    return {
        "name": "pool",
        "label": "Pool",
        "type": "query",
        "datasource": _DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "pool"},
        "hide": 0,
        "refresh": 2,
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "sort": 1,
        "current": {"text": "All", "value": "$__all"},
        "options": [],
    }


def _panels() -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        made.append(_heading(len(made) + 1, row.title, y))
        x, y = 0, y + 1
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            made.append(_panel(len(made) + 1, panel, x, y))
            x += panel.width
        y += HEIGHT
    return made


def _heading(number: int, title: str, y: int) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": title,
        "collapsed": False,
        "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
        "panels": [],
    }


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": _COLORS[0], "value": None}]
    colors = _COLORS[1:] if len(panel.thresholds) > 1 else _COLORS[2:]
    if panel.type == "stat":  # a small number is bad
        steps = [{"color": "red", "value": None}]
        colors = ("green",)
    steps += [{"color": color, "value": value} for color, value in zip(colors, panel.thresholds, strict=False)]
    shown: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    options: dict[str, Any] = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    if panel.type == "timeseries":
        # The value was unknown in a gap.
        shown["custom"] = {"spanNulls": False, "lineWidth": 1, "fillOpacity": 10, "showPoints": "auto"}
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return {
        "id": number,
        "type": panel.type,
        "title": panel.title,
        "description": panel.question,
        "datasource": _DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": HEIGHT},
        "fieldConfig": {"defaults": shown, "overrides": []},
        "options": options,
        "targets": [_target(place, query) for place, query in enumerate(panel.queries)],
    }


def _target(place: int, query: Query) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + place),
        "datasource": _DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend,
        "range": True,
        "instant": False,
    }


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
