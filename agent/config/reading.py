"""Walking a document against the table of options: unknown keys, wrong values and missing ones become problems."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Any

from agent.config.document import Items, Mark, Node, Problem, Table, is_null, kind_of
from agent.config.options import options
from agent.config.values import Kind, Wrong, meant


class Reader:
    """Collects problems, and remembers where each key stood so that a later check can name the place."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.marks: dict[str, Mark] = {}

    def wrong(self, mark: Mark, key: str, what: str) -> None:
        """One more problem."""
        self.problems.append(Problem(mark, key, what))

    def wrong_at(self, key: str, what: str, *, stands: str = "") -> None:
        """One more problem, at the place of `stands` (`key` where not given), or of what surrounds it."""
        place = stands or key
        while place and place not in self.marks:
            place = place[: max(place.rfind("."), place.rfind("["), 0)]
        self.wrong(self.marks.get(place, 0), key, what)

    def spelt(self, key: str) -> str:
        """The key as the user wrote it: the flag's name where it came from one."""
        mark = self.marks.get(key)
        return mark if isinstance(mark, str) else key

    def table(self, node: Node | None, key: str) -> Table | None:
        """The node if it is a mapping; an empty one counts as absent."""
        if node is None or is_null(node):
            return None
        if isinstance(node, Table):
            return node
        self.wrong(node.mark, key, f"{kind_of(node)} where keys are wanted; write the options below it, indented")
        return None

    def items(self, node: Node | None, key: str) -> Iterator[tuple[str, Node]]:
        """The entries of a list, each with its key; none when it is absent."""
        if node is None or is_null(node):
            return
        if not isinstance(node, Items):
            self.wrong(node.mark, key, f"{kind_of(node)} where a list is wanted; begin each entry with '- '")
            return
        for place, item in enumerate(node.items):
            path = f"{key}[{place}]"
            self.marks[path] = item.mark
            if is_null(item):
                what = "a comma" if isinstance(item.mark, str) else "its '-'"
                self.wrong(item.mark, path, f"an empty entry; write what belongs there, or remove {what}")
            else:
                yield path, item

    def known(self, table: Table, key: str, valid: Collection[str]) -> None:
        """Refuse every key of the table that is not among `valid`."""
        for found, mark in table.marks.items():
            path = f"{key}.{found}" if key else found
            self.marks[path] = mark
            if found not in valid:
                self.wrong(mark, path, f"unknown key; {meant_key(found, valid)}")

    def value(self, table: Table, key: str, name: str, kind: Kind) -> Any:
        """The value of an option, or None when it is absent, empty or wrong."""
        node = table.entries.get(name)
        if node is None:
            return None
        path = f"{key}.{name}" if key else name
        self.marks[path] = table.marks[name]
        try:
            return kind.read(node)
        except Wrong as wrong:
            self.wrong(node.mark, path, str(wrong))
            return None

    def written(self, section: type, node: Node | None, key: str, also: Collection[str] = ()) -> dict[str, Any]:
        """The options of a section that are written and right, by field; `also` are keys that somebody else reads."""
        table = self.table(node, key)
        if table is None:
            return {}
        self.marks.setdefault(key, table.mark)
        rows = list(options(section))
        self.known(table, key, [*(row.key for row in rows), *also])
        found = {row.field: self.value(table, key, row.key, row.kind) for row in rows}
        return {field: value for field, value in found.items() if value is not None}


def meant_key(word: str, valid: Collection[str]) -> str:
    """`did you mean 'x'?`, or the list of valid keys, or that there are none."""
    near = get_close_matches(word.replace("_", "").replace("-", "").lower(), [name.lower() for name in valid], 1, 0.7)
    for name in valid:
        if near and name.lower() == near[0]:
            return f"did you mean '{name}'?"
    return meant(word, sorted(valid)) if valid else "nothing is valid here; remove it"
