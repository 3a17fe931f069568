"""The names in a PromQL expression: enough to check dashboards and alert rules against the catalogue."""

from __future__ import annotations

import re

# Functions and keywords of PromQL that our expressions use; any other name is a metric.
VOCABULARY = frozenset(
    """abs absent and avg bool by clamp count delta deriv group group_left group_right histogram_quantile ignoring
    increase irate label_replace max min offset on or quantile rate sum time topk unless vector without""".split()
)
_LISTS = r"\b(by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)"


def metrics(expr: str) -> set[str]:
    """The names of the metrics."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", " ", bare)
    bare = re.sub(r"\boffset\s+\S+", " ", bare)
    bare = re.sub(_LISTS, " ", bare)
    return {name for name in re.findall(r"[a-zA-Z_:][\w:]*", bare) if name not in VOCABULARY}


def labels(expr: str) -> set[str]:
    """The names of the labels in selectors and groupings."""
    bare = re.sub(r'"[^"]*"', '""', expr)
    found = {name for inside in re.findall(r"\{([^}]*)\}", bare) for name in re.findall(r"(\w+)\s*[=!]", inside)}
    for _, listed in re.findall(_LISTS, bare):
        found |= {name.strip() for name in listed.split(",") if name.strip()}
    return found


def family(name: str) -> str:
    """The metric of a sample, without the suffixes of a histogram."""
    return re.sub(r"_(bucket|count|sum)$", "", name)
