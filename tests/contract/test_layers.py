"""The layers: which module may import which, which are pure, and which import a third-party client.

The tables below are the rules; docs/architecture.md explains them. A new folder of agent/, or a new third-party client,
fails until it has a row here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Place(NamedTuple):
    """A layer (a module imports from its own or a lower one), and whether its modules are pure."""

    layer: int
    pure: bool


P, S = True, False
# The longest prefix of a module's name counts.
PLACES: dict[str, Place] = {
    "agent": Place(1, P),
    "agent.config": Place(1, P),
    "agent.config.file": Place(1, S),
    "agent.clock": Place(1, S),
    "agent.signals": Place(1, P),
    "agent.events": Place(1, P),
    "agent.engine_specs": Place(1, P),
    "agent.profiles": Place(1, P),
    "agent.scrape": Place(5, S),
    "agent.exposition": Place(2, P),
    "agent.scrape.budget": Place(2, P),
    "agent.scrape.http": Place(2, P),
    "agent.scrape.model_refresh": Place(2, P),
    "agent.scrape.reasons": Place(2, P),
    "agent.scrape.schedule": Place(2, P),
    "agent.accelerators": Place(2, P),
    "agent.accelerators.gke": Place(5, S),
    "agent.accelerators.nvml": Place(5, S),
    "agent.accelerators.device_source": Place(2, P),
    "agent.engines": Place(2, P),
    "agent.state": Place(3, P),
    "agent.prefix": Place(3, P),
    "agent.flow": Place(4, P),
    "agent.pick": Place(4, P),
    "agent.requests": Place(4, P),
    "agent.replicas": Place(5, S),
    "agent.replicas.peer_part": Place(4, P),
    "agent.replicas.publisher": Place(4, P),
    "agent.replicas.report": Place(4, P),
    "agent.replicas.shared_exchange": Place(4, P),
    "agent.replicas.shared_history": Place(4, P),
    "agent.scaling": Place(4, P),
    "agent.envoy": Place(5, S),
    "agent.envoy.endpoints": Place(4, P),
    "agent.envoy.render": Place(4, P),
    "agent.envoy.usage": Place(4, P),
    "agent.envoy.rollout": Place(4, P),
    "agent.discovery": Place(5, S),
    "agent.kube": Place(5, S),
    "agent.kube.autoscalers": Place(2, P),
    "agent.kube.capacity_record": Place(2, P),
    "agent.kube.conditions": Place(2, P),
    "agent.kube.event_series": Place(2, P),
    "agent.kube.objectives": Place(2, P),
    "agent.kube.objects": Place(2, P),
    "agent.kube.problem_reasons": Place(2, P),
    "agent.kube.shared_pods": Place(2, P),
    "agent.kube.cache": Place(2, P),
    "agent.kube.errors": Place(2, P),
    "agent.kube.lease": Place(2, P),
    "agent.kube.pool_endpoints": Place(2, P),
    "agent.kube.authn.certificate_name": Place(2, P),
    "agent.kube.authn.certificates": Place(2, P),
    "agent.kube.authn.expiring_cache": Place(2, P),
    "agent.kube.authn.identity": Place(2, P),
    "agent.kube.authn.reviews": Place(2, P),
    "agent.kube.authn.token_file": Place(2, P),
    "agent.kube.authn.trust": Place(2, P),
    "agent.serve": Place(5, S),
    "agent.serve.ext_proc.actions": Place(5, P),
    "agent.serve.ext_proc.body_budget": Place(5, P),
    "agent.serve.ext_proc.headers": Place(5, P),
    "agent.serve.ext_proc.holding": Place(5, P),
    "agent.serve.ext_proc.session": Place(5, P),
    "agent.serve.grpc": Place(5, P),
    "agent.serve.grpc.health": Place(5, S),
    "agent.serve.grpc.listener": Place(5, S),
    "agent.serve.http2": Place(4, P),
    "agent.serve.keda.trigger": Place(5, P),
    "agent.serve.metrics_api": Place(5, P),
    "agent.serve.metrics_api.server": Place(5, S),
    "agent.serve.metrics_api.access": Place(5, S),
    "agent.serve.state.schema": Place(5, P),
    "agent.instruments": Place(5, S),
    "agent.emulator": Place(5, P),
    "agent.emulator.bad_pages": Place(5, S),
    "agent.emulator.completions": Place(5, S),
    "agent.emulator.driver": Place(5, S),
    "agent.emulator.foreign_load": Place(5, S),
    "agent.emulator.process": Place(5, S),
    "agent.emulator.realtime": Place(5, S),
    "agent.emulator.server": Place(5, S),
    "agent.app": Place(6, S),
    "agent.demo": Place(6, S),
    "agent.demo.report": Place(6, P),
    "agent.demo.workload": Place(6, P),
    "agent.commands": Place(7, S),
    "agent.__main__": Place(7, S),
    "exporters": Place(5, S),
    "dashboards": Place(1, P),
    "dashboards.render": Place(1, S),
    "exporters.catalog": Place(1, P),
    "exporters.exporter": Place(1, P),
    "exporters.gauge": Place(1, P),
}
# The emulator replaces another program: it may use the names of signals, and no other code of the agent.
ISLANDS: dict[str, frozenset[str]] = {
    "agent.emulator": frozenset({"agent.emulator", "agent.signals", "agent.clock"}),
    # It decides about requests and endpoints, whatever a request or a pick is.
    "agent.flow": frozenset({"agent.flow", "agent.signals", "agent.state"}),
    # No import cycle: engines use the text format, and the scraper uses both.
    "agent.exposition": frozenset({"agent.exposition"}),
    "agent.engines": frozenset({"agent.engines", "agent.engine_specs", "agent.exposition", "agent.signals"}),
    "agent.scrape": frozenset(
        {
            "agent.scrape",
            "agent.clock",
            "agent.engine_specs",
            "agent.engines",
            "agent.exposition",
            "agent.state.identity",
            "agent.state.health",  # the number of failures until it is down
        }
    ),
    "dashboards": frozenset({"dashboards", "exporters.catalog"}),
    "exporters": frozenset({"exporters"}),
}
# What a pure module may import besides pure modules of the agent: values and functions of values.
PURE: frozenset[str] = frozenset(
    """__future__ abc array base64 binascii bisect collections contextlib copy csv dataclasses difflib enum functools
    hashlib heapq hmac html ipaddress itertools json math operator pkgutil re statistics string struct textwrap typing
    unicodedata urllib.parse zlib""".split()
)
# Modules with a pure part; a pure module may use no other part.
PURE_PARTS: dict[str, frozenset[str]] = {
    "cryptography": frozenset({"x509"}),  # its verification takes the time as an argument
    "datetime": frozenset({"UTC", "datetime", "fromisoformat", "fromtimestamp"}),  # of a given time
    "random": frozenset({"Random"}),  # made from a given seed
    "sys": frozenset({"byteorder"}),
}
# Builtins that do I/O or run code.
IMPURE_CALLS: frozenset[str] = frozenset({"open", "print", "input", "exec", "eval", "breakpoint"})
# Clocks and clients of other systems, and the modules that may import them.
IMPORTERS: dict[str, frozenset[str]] = {
    "time": frozenset({"agent.clock"}),
    "datetime": frozenset(
        {
            "agent.app.jobs",
            "agent.instruments.log_format",
            "agent.instruments.tls",
            "agent.kube.authn.certificates",
            "agent.kube.wall_time",
            "agent.serve.metrics_api.documents",
            "agent.scaling.trace",
            "agent.serve.state.moment",
            "agent.serve.tls.authority",
            "agent.serve.tls.self_signed",
        }
    ),  # formats of a given wall time
    "sched": frozenset(),
    "threading": frozenset({"agent.kube.threads"}),
    "logging": frozenset(
        {
            "agent.commands.emulate",
            "agent.emulator.server",
            "agent.instruments.event_log",
            "agent.instruments.log_format",
            "agent.serve.http.server",
        }
    ),
    "aiohttp": frozenset(
        {
            "agent.demo.client",
            "agent.demo.fleet",
            "agent.emulator.bad_pages",
            "agent.emulator.completions",
            "agent.emulator.realtime",
            "agent.emulator.server",
            "agent.envoy.process",
            "agent.serve.admin",
            "agent.serve.http",
            "agent.serve.metrics_api.access",
            "agent.serve.metrics_api.server",
            "agent.serve.state.api",
        }
    ),
    "apscheduler": frozenset({"agent.app.jobs"}),
    "cryptography": frozenset(
        {"agent.kube.authn.certificates", "agent.serve.tls.authority", "agent.serve.tls.self_signed"}
    ),
    "envoy": frozenset({"agent.serve.access_log", "agent.serve.ext_proc.messages"}),
    "google.cloud": frozenset({"agent.accelerators.gke"}),
    "google.protobuf": frozenset(
        {
            "agent.serve.access_log",
            "agent.serve.grpc.health",
            "agent.serve.ext_proc.messages",
            "agent.serve.ext_proc.server",
            "agent.serve.keda.messages",
        }
    ),
    "grpc": frozenset({"agent.replicas.client"}),
    "grpc_health": frozenset({"agent.serve.grpc.health"}),
    "kubernetes": frozenset({"agent.kube.client"}),
    "urllib3": frozenset({"agent.kube.client"}),
    "pynvml": frozenset({"agent.accelerators.nvml"}),
    "prometheus_client": frozenset({"agent.instruments", "exporters.prometheus"}),
    "rich": frozenset({"agent.demo.screen"}),
    "uvloop": frozenset({"agent.app.process", "agent.commands.emulate"}),
    "yaml": frozenset({"agent.config.document"}),
    "zstandard": frozenset({"agent.requests.unpack"}),
}
# Numbers, hashes and codecs, without a clock, a socket or a file: any module may import them.
OF_VALUES: frozenset[str] = frozenset({"hpack", "msgspec", "orjson", "xxhash", "yaml", "zstandard"})
SHIPPED = ("agent", "exporters", "dashboards")
VAGUE_NAMES: frozenset[str] = frozenset(
    "util utils helper helpers common manager managers misc base core types constants".split()
)


class Import(NamedTuple):
    """An imported module, and the line of the import."""

    module: str
    line: int


def module_name(path: Path) -> str:
    """The dotted name of a source file below the root."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def sources() -> dict[str, str]:
    """Module name -> source, of all that is shipped as code."""
    files = (path for top in SHIPPED for path in (ROOT / top).rglob("*.py"))
    return {module_name(path): path.read_text(encoding="utf-8") for path in files}


def place(module: str) -> Place:
    """The row of the longest prefix that has one. KeyError: a folder without a layer."""
    name = module
    while name not in PLACES or (name == "agent" and module != "agent"):
        name = name.rpartition(".")[0]
        if not name:
            raise KeyError(module)
    return PLACES[name]


def imports(source: str, known: Mapping[str, str]) -> Iterator[Import]:
    """Every module that a source imports, also within functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(full if full in known else node.module, node.lineno)


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


def violations(modules: Mapping[str, str]) -> list[str]:
    """The violations of the tables above in these sources, one sentence each."""
    known = {**sources(), **modules}
    return sorted({wrong for name, source in modules.items() for wrong in _violations(name, source, known)})


def _violations(name: str, source: str, known: Mapping[str, str]) -> Iterator[str]:
    try:
        own = place(name)
    except KeyError:
        yield f"{name} has no layer: give its folder a row in PLACES"
        return
    island = next((allowed for prefix, allowed in ISLANDS.items() if within(name, prefix)), None)
    for found, line in imports(source, known):
        where = f"{name}:{line} imports {found}"
        top = found.partition(".")[0]
        if top in SHIPPED:
            try:
                other = place(found)
            except KeyError:
                yield f"{where}, which has no layer"
                continue
            if island is not None and not any(within(found, allowed) for allowed in island):
                yield f"{where}: it may import only {', '.join(sorted(island))}"
            if other.layer > own.layer:
                yield f"{where}: layer {own.layer} may not import layer {other.layer}"
            if own.pure and not other.pure:
                yield f"{where}: a pure module may not import the shell"
            continue
        if own.pure and found not in PURE and not {top, found} & (PURE | OF_VALUES | PURE_PARTS.keys()):
            yield f"{where}: a pure module may not"
        key = next((key for key in IMPORTERS if within(found, key)), None)
        if key is not None:
            if not any(within(name, allowed) for allowed in IMPORTERS[key]):
                yield f"{where}: only {', '.join(sorted(IMPORTERS[key])) or 'no module'} may"
        elif top not in sys.stdlib_module_names and top not in OF_VALUES:
            yield f"{where}, a third-party package without a row in IMPORTERS"
    if own.pure:
        for line, what in impurities(ast.parse(source)):
            yield f"{name}:{line} {what}: a pure module may not"


def impurities(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Uses of impure builtins, or of the impure part of a module: line and description."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=called)) if called in IMPURE_CALLS:
                yield node.lineno, f"calls {called}()"
            case ast.Attribute(value=ast.Name(id=module), attr=part) if part not in PURE_PARTS.get(module, {part}):
                yield node.lineno, f"uses {part} of {module}"
            case ast.ImportFrom(module=str(module), names=names):
                for alias in names:
                    if alias.name not in PURE_PARTS.get(module, {alias.name}):
                        yield node.lineno, f"uses {alias.name} of {module}"


def test_every_module_respects_its_layer_and_its_purity() -> None:
    found = violations(sources())
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "source", "message"),
    [
        ("agent.state.probe", "from agent.pick import filters", "layer 3 may not import layer 4"),
        ("agent.state.probe", "import agent.pick.filters", "layer 3 may not import layer 4"),
        ("agent.pick.probe", "def f():\n    from agent.serve.ext_proc import server", "layer 4 may not import layer 5"),
        ("agent.engines.probe", "import asyncio", "a pure module may not"),
        ("agent.engines.probe", "import urllib.request", "a pure module may not"),
        ("agent.engines.probe", "import logging", "a pure module may not"),
        ("agent.pick.probe", "from agent.clock import Clock", "a pure module may not import the shell"),
        ("agent.pick.probe", "print('seen')", "calls print()"),
        ("agent.pick.probe", "import random\nrandom.random()", "uses random of random"),
        ("agent.pick.probe", "from random import choice", "uses choice of random"),
        ("agent.serve.probe", "from time import monotonic", "only agent.clock may"),
        ("agent.serve.probe", "import boto3", "without a row in IMPORTERS"),
        ("agent.novel.probe", "", "has no layer"),
        ("agent.emulator.probe", "from agent.state import store", "may import only"),
        ("exporters.probe", "from agent import signals", "may import only"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, message: str) -> None:
    found = violations({module: source})
    assert any(wrong.startswith(module) and message in wrong for wrong in found), found


def test_a_correct_import_is_accepted() -> None:
    good = "from __future__ import annotations\nimport math, xxhash\nfrom agent.state import snapshot\n"
    assert violations({"agent.pick.probe": good}) == []


def test_every_row_of_the_tables_is_used() -> None:
    modules = sources()
    rows = {*PLACES, *ISLANDS, *(name for names in IMPORTERS.values() for name in names)}
    assert sorted(row for row in rows if not any(within(module, row) for module in modules)) == []
    used = {found for source in modules.values() for found, _ in imports(source, modules)}
    idle = [key for key, names in IMPORTERS.items() if names and not any(within(found, key) for found in used)]
    assert idle == []


def test_no_file_or_folder_has_a_vague_name() -> None:
    files = [path for top in (*SHIPPED, "tests") for path in (ROOT / top).rglob("*.py")]
    named = {part for path in files for part in path.relative_to(ROOT).with_suffix("").parts}
    assert named & VAGUE_NAMES == set()


def test_no_test_imports_sleep_by_name() -> None:
    """The fixture that finds sleeping tests would miss `from time import sleep`."""
    taken = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom)
        and node.module in {"time", "asyncio"}
        and any(alias.name == "sleep" for alias in node.names)
    ]
    assert taken == []
