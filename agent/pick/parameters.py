"""Strict reading of a plugin's parameters: the error for an unknown key or a bad value says what to write."""

from __future__ import annotations

from collections.abc import Mapping


class BadParameter(ValueError):
    """A parameter that cannot be used: its `key`, and `what` is wrong with it (the end of a sentence)."""

    def __init__(self, key: str, what: str) -> None:
        super().__init__(f"{key} {what}")
        self.key = key
        self.what = what


def only(parameters: Mapping[str, object], *known: str) -> None:
    """Raise BadParameter for a parameter that is not among `known`."""
    for key in parameters:
        if key not in known:
            choice = f"it takes {', '.join(known)}" if known else "it takes no parameters"
            raise BadParameter(key, f"is not a parameter here: {choice}")


def number(parameters: Mapping[str, object], key: str, default: float, *, low: float, high: float) -> float:
    """The parameter as a number from `low` to `high`, or `default` when it is missing. BadParameter otherwise."""
    value = parameters.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadParameter(key, f"is {value!r}: write a number")
    if not low <= value <= high:
        raise BadParameter(key, f"is {value!r}: write a number from {low:g} to {high:g}")
    return float(value)
