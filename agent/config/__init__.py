"""The configuration: an EndpointPickerConfig document with our sections beside its own, or the same from flags.

Text becomes nodes (`document`), nodes become the field's part (`plugins`) and ours (`options` by `reading`), and the
whole is checked for what cannot be (`checks`). Everything that is wrong is told at once. What comes out is frozen,
complete and true to itself: nothing behind this door reads YAML or asks whether an option fits another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from agent.config.checks import check
from agent.config.document import MAX_BYTES, BadConfig, Items, Node, Problem, Scalar, Table, compose
from agent.config.names import API_VERSIONS, FIELD_KEYS, KIND, Vocabulary
from agent.config.options import (
    SECTIONS,
    Accelerators,
    Admin,
    Budget,
    Config,
    Endpoint,
    ExtProc,
    Log,
    Pool,
    PrefillRate,
    PrefixIndex,
    Reach,
    Reload,
    Scrape,
    State,
    options,
    snake,
)
from agent.config.plugins import Found, read
from agent.config.reading import Reader
from agent.engine_specs import ENGINE_LABELS, engine_by_label
from agent.profiles import PRESETS

__all__ = [
    "Accelerators",
    "Admin",
    "BadConfig",
    "Budget",
    "Config",
    "Endpoint",
    "ExtProc",
    "Log",
    "Pool",
    "PrefillRate",
    "PrefixIndex",
    "Problem",
    "Reach",
    "Reload",
    "Scrape",
    "State",
    "Vocabulary",
    "from_flags",
    "load",
    "parse",
]

_STALE_AFTER_INTERVALS: Final = 3  # two pages may be lost or late before an endpoint counts as unknown


def load(path: str | Path, words: Vocabulary | None = None) -> Config:
    """The configuration in a file. Raises `BadConfig` with all that is wrong, a file that cannot be read included."""
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise BadConfig(str(path), [Problem(0, "", f"cannot be read: {error.strerror or error}")]) from error
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        if len(data) <= MAX_BYTES or error.start < MAX_BYTES - 4:
            line = data.count(b"\n", 0, error.start) + 1
            raise BadConfig(str(path), [Problem(line, "", "not UTF-8; save the file as UTF-8")]) from error
        text = " " * len(data)
    return parse(text, str(path), words)


def parse(text: str, name: str, words: Vocabulary | None = None) -> Config:
    """The configuration in a text; `name` stands for it in messages. Raises `BadConfig`.

    `words` are the engines and plugins that there are; without them any name passes that looks like one.
    """
    problems: list[Problem] = []
    document = compose(text, problems)
    if document is None:
        raise BadConfig(name, problems)
    return _understand(document, name, problems, words)


def from_flags(
    endpoints: Sequence[str],
    *,
    words: Vocabulary | None = None,
    pool: str | None = None,
    engine: str | None = None,
    profile: str | None = None,
    scrape_interval: str | None = None,
    ext_proc_address: str | None = None,
    admin_address: str | None = None,
) -> Config:
    """What `igw run --endpoints ...` stands for: the same document, the same checks. Raises `BadConfig`."""

    def table(flags: dict[str, tuple[str, str | None]], **more: Node) -> Table:
        given = {key: Scalar(flag, text) for key, (flag, text) in flags.items() if text is not None}
        entries: dict[str, Node] = {**given, **more}
        return Table("--endpoints", entries, {key: node.mark for key, node in entries.items()})

    addresses = Items("--endpoints", [Scalar("--endpoints", text) for text in endpoints])
    one = table(
        {
            "name": ("--pool", pool),
            "engine": ("--engine", engine),
            "profile": ("--profile", profile),
            "extProcAddress": ("--ext-proc-address", ext_proc_address),
        },
        endpoints=addresses,
    )
    document = table(
        {"apiVersion": ("", API_VERSIONS[0]), "kind": ("", KIND)},
        pools=Items("--endpoints", [one]),
        scrape=table({"interval": ("--scrape-interval", scrape_interval)}),
        admin=table({"address": ("--admin-address", admin_address)}),
    )
    return _understand(document, "flags", [], words)


def _understand(document: Table, name: str, problems: list[Problem], words: Vocabulary | None) -> Config:
    reader = Reader(problems)
    reader.known(document, "", (*FIELD_KEYS, "pools", *SECTIONS))
    found = read(document, reader, words)
    profiles = {**PRESETS, **found.profiles}
    made: dict[str, Any] = {}
    for key, section in SECTIONS.items():
        node = document.entries.get(key)
        fields = reader.written(section, node, key, ("budget",) if section is Scrape else ())
        _carry_over(reader, found, key, section, fields)
        if section is Scrape and isinstance(node, Table):
            fields["budget"] = Budget(**reader.written(Budget, node.entries.get("budget"), "scrape.budget"))
        if section is State and "stale_after" not in fields:
            fields["stale_after"] = max(3.0, _STALE_AFTER_INTERVALS * made["scrape"].interval)
        made[key] = section(**fields)
    config = Config(
        source=name,
        pools=_pools(document, reader, found),
        profiles=profiles,
        engines=tuple(found.engines.values()),
        engine_labels=_engine_labels(found),
        notes=tuple(found.notes),
        **{snake(key): section for key, section in made.items()},
    )
    check(config, reader, words)
    if problems:
        raise BadConfig(
            name, sorted(problems, key=lambda problem: problem.mark if isinstance(problem.mark, int) else 0)
        )
    return config


def _carry_over(reader: Reader, found: Found, key: str, section: type, fields: dict[str, Any]) -> None:
    """Take what the field's part of the document says about this section, unless it is said here as well."""
    for row in options(section):
        setting = found.settings.get(f"{key}.{row.key}")
        if setting is None:
            continue
        if row.field in fields:
            reader.wrong_at(f"{key}.{row.key}", f"also set by {setting.key} on line {setting.mark}; keep one of them")
        else:
            fields[row.field] = setting.value
            reader.marks[f"{key}.{row.key}"] = setting.mark


def _pools(document: Table, reader: Reader, found: Found) -> tuple[Pool, ...]:
    own = list(found.profiles)
    usual = {"engine": found.settings["pools[].engine"].value} if "pools[].engine" in found.settings else {}
    if len(own) == 1:
        usual["profile"] = own[0]
    pools = []
    for key, node in reader.items(document.entries.get("pools"), "pools"):
        table = reader.table(node, key)
        if table is None:
            continue
        fields = {**usual, **reader.written(Pool, table, key, ("endpoints", "accelerators", "scrape"))}
        if len(own) > 1 and "profile" not in table.entries:
            reader.wrong(
                table.mark, f"{key}.profile", f"missing; the file has several profiles: write one of {', '.join(own)}"
            )
        engine = fields.get("engine", Pool.__dataclass_fields__["engine"].default)
        endpoints = tuple(_endpoints(table, key, reader, engine, _engine_labels(found)))
        accelerators = tuple(_accelerators(table, key, reader))
        reach = Reach(**reader.written(Reach, table.entries.get("scrape"), f"{key}.scrape"))
        pools.append(Pool(endpoints=endpoints, accelerators=accelerators, reach=reach, **fields))
    return tuple(pools)


def _accelerators(pool: Table, key: str, reader: Reader) -> Iterator[Accelerators]:
    for path, node in reader.items(pool.entries.get("accelerators"), f"{key}.accelerators"):
        fields = reader.written(Accelerators, node, path)
        if "source" not in fields:
            if not any(problem.key.startswith(path) for problem in reader.problems):
                reader.wrong(node.mark, f"{path}.source", "missing; write who tells of the accelerators, such as dcgm")
            continue
        if fields["source"] == "gke":  # sampled once a minute, and shown up to two minutes later
            fields = {"interval": 60.0, "timeout": 10.0, "stale_after": 300.0, **fields}
        interval = fields.get("interval", Accelerators.__dataclass_fields__["interval"].default)
        fields.setdefault("stale_after", max(15.0, _STALE_AFTER_INTERVALS * interval))
        yield Accelerators(**fields)


def _engine_labels(found: Found) -> tuple[str, ...]:
    """The keys of the label that names an endpoint's engine."""
    said = found.settings.get("engineLabelKey")
    return ENGINE_LABELS if said is None else (said.value,)


def _endpoints(pool: Table, key: str, reader: Reader, engine: str, labels: Sequence[str]) -> list[Endpoint]:
    endpoints = []
    kind = next(options(Endpoint)).kind
    if "endpoints" not in pool.entries:
        reader.wrong(pool.mark, f"{key}.endpoints", "missing; list the model servers, each as HOST:PORT")
    for path, node in reader.items(pool.entries.get("endpoints"), f"{key}.endpoints"):
        if isinstance(node, Table):
            fields = reader.written(Endpoint, node, path)
            if "address" not in node.entries:
                reader.wrong(node.mark, f"{path}.address", "missing; write HOST:PORT")
        else:
            alone = Table(node.mark, {"address": node}, {"address": node.mark})
            address = reader.value(alone, path, "address", kind)
            fields = {} if address is None else {"address": address}
        if "address" in fields:
            told = engine_by_label(dict(fields.get("labels", ())), labels)
            endpoints.append(Endpoint(**{"engine": told[1] if told else engine, **fields}))
    return endpoints
