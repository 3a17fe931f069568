"""The names that a configuration may use: every engine, filter and scorer that is in a registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from agent.accelerators import DEVICE_SOURCES, EXPORTERS
from agent.config.vocabulary import Vocabulary
from agent.engine_specs import AUTO
from agent.engines import ENGINES
from agent.pick.filters import FILTERS
from agent.pick.parameters import BadParameter
from agent.pick.scorers import SCORERS, scorer


def check_parameters(type_: str, parameters: Mapping[str, object]) -> tuple[str, str] | None:
    """None when a plugin of this type takes these parameters, else the one that is wrong and what is wrong with it."""
    try:
        if type_ in FILTERS:
            FILTERS[type_](parameters)
        else:
            scorer(type_, parameters)
    except BadParameter as bad:
        return bad.key, bad.what
    return None


VOCABULARY: Final = Vocabulary(
    (*sorted(ENGINES), AUTO),
    tuple(sorted([*EXPORTERS, *DEVICE_SOURCES])),
    tuple(sorted(FILTERS)),
    tuple(sorted(SCORERS)),
    check_parameters,
)
