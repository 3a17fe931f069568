"""The exporters: name -> where its class is. A new exporter is one file here and one line in this table."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from typing import Final, cast

from exporters.exporter import Exporter

EXPORTERS: Final[Mapping[str, str]] = {
    "prometheus": "exporters.prometheus:PrometheusExporter",
}


def make_exporter(name: str) -> Exporter:
    """A new exporter of this name. KeyError for an unknown one."""
    make = cast(Callable[[], Exporter], pkgutil.resolve_name(EXPORTERS[name]))
    return make()
