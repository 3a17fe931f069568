"""Whose a page is, by the beginnings of its names: the right engine for a page of the wrong one, or for one of which
nobody said whose it is.

Only samples count. A HELP text may speak of another engine, and a name may stand in a label.
"""

from __future__ import annotations

from agent.engines.table import MARKS, STRANGERS
from agent.exposition.page import PageRefused, is_metrics


def recognise(page: bytes) -> str:
    """The engine that wrote the page; PageRefused where it has the names of none, or of several."""
    owners = _owners(page)
    if len(owners) == 1:
        return owners[0]
    known = ", ".join(sorted(set(MARKS.values())))
    if owners:
        raise PageRefused(
            "wrong_engine",
            f"the page has names of {' and of '.join(owners)}: write which it is, such as {_option(owners[0])}",
        )
    if stranger := other(page, ""):
        raise PageRefused("wrong_engine", f"this is a page of {stranger}, and of no model server: {advice(stranger)}")
    if not is_metrics(page):
        raise PageRefused(
            "not_metrics", "no line of the page is in the Prometheus text format: is this the path of the metrics?"
        )
    raise PageRefused("wrong_engine", f"the page has names of no engine that is known ({known}): write its `engine`")


def other(page: bytes, name: str) -> str:
    """The engine or program other than `name` whose names the page has; empty when there is none."""
    owners = [owner for owner in _owners(page) if owner != name]
    if owners:
        return owners[0]
    return next((owner for mark, owner in STRANGERS.items() if _begins(page, mark)), "")


def advice(owner: str) -> str:
    """What to write, or to look at, where a page is this one's."""
    if owner in MARKS.values():
        return f"write {_option(owner)} for the endpoint"
    return "is this the address of the model server?"


def _option(name: str) -> str:
    return f"`engine: {name}`"


def _owners(page: bytes) -> list[str]:
    """The engines whose names the page has; of those that begin alike the one with the longer name."""
    found: dict[str, str] = {}
    for mark, owner in MARKS.items():
        if _begins(page, mark) and not any(longer.startswith(mark) for longer in found):
            found[mark] = owner
    return list(dict.fromkeys(found.values()))


def _begins(page: bytes, mark: str) -> bool:
    """Whether a line of the page begins with this."""
    text = mark.encode()
    return page.startswith(text) or b"\n" + text in page
