"""Which engine wrote a page, by the prefixes of its metric names: for endpoints of unknown engine and for error
messages.

Only sample names count: a HELP text may mention another engine, and a label may contain a metric name. On a page
without a sample the names in TYPE lines count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from agent.engines import ENGINES, engine
from agent.engines.spellings import spellings
from agent.engines.table import OTHER_PROGRAMS
from agent.exposition.page import NO_SAMPLES, PageRefused, check_page, describes, has_samples, is_metrics


@cache
def name_prefixes() -> Mapping[str, str]:
    """Prefix of metric names -> engine, of every engine and every known spelling of its names; of two that match the
    same names the longer one is first."""
    tables = {name: engine(name) for name in ENGINES}
    found = {
        prefix: name
        for name, table in tables.items()
        for spelt in (table, *spellings(table))
        for prefix in spelt.prefixes
    }
    return {prefix: found[prefix] for prefix in sorted(found, key=len, reverse=True)}


def recognise(page: bytes) -> str:
    """The engine that wrote the page; PageRefused where it is not a page, or has the names of no engine or of several
    (`empty`: nothing has been counted yet, and no TYPE line names an engine)."""
    check_page(page)
    owners = _owners(page)
    if not owners:
        described = _owners(page.replace(b"# TYPE ", b""))
        owners = described if len(described) == 1 else owners
    if len(owners) == 1:
        return owners[0]
    known = ", ".join(sorted(set(name_prefixes().values())))
    if owners:
        raise PageRefused(
            "wrong_engine",
            f"the page has metrics of {' and of '.join(owners)}: write which it is, such as {_option(owners[0])}",
        )
    if program := other(page, ""):
        raise PageRefused("wrong_engine", f"this is a page of {program}, not of a model server: {advice(program)}")
    without = no_engine(page, name_prefixes())
    if without is not None:
        raise PageRefused(*without)
    raise PageRefused("wrong_engine", f"the page has no metrics of a known engine ({known}): write its `engine`")


def no_engine(page: bytes, prefixes: Iterable[str]) -> tuple[str, str] | None:
    """Reason and detail for a page without a sample of any engine that is not a page, or on which nothing has been
    counted yet: it has no sample at all, or only describes the families with these prefixes. None for another page."""
    if not is_metrics(page):
        return "not_metrics", "no line of the page is in the Prometheus text format: is this the path of the metrics?"
    return ("empty", NO_SAMPLES) if not has_samples(page) or describes(page, prefixes) else None


def other(page: bytes, name: str) -> str:
    """The engine or program other than `name` whose metric names the page has; empty when there is none."""
    owners = [owner for owner in _owners(page) if owner != name]
    if owners:
        return owners[0]
    return next((program for prefix, program in OTHER_PROGRAMS.items() if _has(page, prefix)), "")


def advice(owner: str) -> str:
    """What to configure or to check for a page of this engine or program."""
    if owner in name_prefixes().values():
        return f"write {_option(owner)} for the endpoint"
    return "is this the address of the model server?"


def _option(name: str) -> str:
    return f"`engine: {name}`"


def _owners(page: bytes) -> list[str]:
    """The engines whose metric names the page has; the longer one of two prefixes that match the same names."""
    found: dict[str, str] = {}
    for prefix, owner in name_prefixes().items():
        if _has(page, prefix) and not any(longer.startswith(prefix) for longer in found):
            found[prefix] = owner
    return list(dict.fromkeys(found.values()))


def _has(page: bytes, prefix: str) -> bool:
    """Whether a line of the page begins with this prefix."""
    text = prefix.encode()
    return page.startswith(text) or b"\n" + text in page
