"""Known spellings of an engine's metric names, for pages on which something between engine and page has renamed them.

* Ray Serve exports the metrics of the engines that it runs with the prefix `ray_`. Its older releases keep the colon of
  a name (`ray_vllm:`), newer ones replace it (`ray_vllm_`): ray-project/ray#52719, and vLLM's `ray_wrappers.py`.
* Collectors that do not allow a colon replace it by an underscore: `vllm_`, `sglang_`.
* NVIDIA Dynamo writes the prefix of TensorRT-LLM with a colon: `trtllm:`.

Labels and values are the same, so that one table serves all spellings. A page is read by the engine's own names where
it has any of them, so that another spelling costs nothing on other pages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from agent.engines.table import Engine, SignalSource

_RAY: Final = "ray_"
_SEPARATORS: Final = ":_"
_ROOT: Final = re.compile(r"[^:_]+[:_](?=(?:.*[:_])?\Z)")  # of a prefix; that of `nv_trt_llm_` is `nv_`

# From a name of the engine to the name on the page.
Respell = Callable[[str], str]


def spellings(table: Engine) -> tuple[Engine, ...]:
    """The engine with its names in every other known spelling."""
    roots = tuple(dict.fromkeys(found[0] for prefix in table.prefixes if (found := _ROOT.match(prefix))))
    return tuple(_spelt(table, roots, before, separator) for before, separator in _ways(roots)) if roots else ()


def spelling_of(others: Iterable[Engine], page: bytes) -> Engine | None:
    """The first of these spellings that the page has; None where it has none of them."""
    return next((other for other in others if _has_sample_of(page, other.prefixes)), None)


def _ways(roots: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What goes before a name, and the separator at the end of its root (empty: unchanged), in every known spelling."""
    own = {root[-1] for root in roots}
    others = [separator for separator in _SEPARATORS if separator not in own]
    return ((before, separator) for before in ("", _RAY) for separator in ("", *others) if before or separator)


def _spelt(table: Engine, roots: tuple[str, ...], before: str, separator: str) -> Engine:
    def respell(name: str) -> str:
        """A name that every server may have, such as that of the process, is unchanged."""
        root = next((root for root in roots if name.startswith(root)), None)
        return name if root is None else before + root[:-1] + (separator or root[-1]) + name[len(root) :]

    return replace(
        table,
        prefixes=tuple(map(respell, table.prefixes)),
        sources={
            signal: tuple(_source(source, respell) for source in sources) for signal, sources in table.sources.items()
        },
        histograms={signal: tuple(map(respell, families)) for signal, families in table.histograms.items()},
        foreign_samples={respell(name): owner for name, owner in table.foreign_samples.items()},
    )


def _source(source: SignalSource, respell: Respell) -> SignalSource:
    return replace(
        source,
        sample=respell(source.sample),
        added=tuple(map(respell, source.added)),
        optional=tuple(tuple(map(respell, names)) for names in source.optional),
        followed_by=tuple(map(respell, source.followed_by)),
    )


def _has_sample_of(page: bytes, prefixes: Iterable[str]) -> bool:
    """Whether a line of the page begins with one of these prefixes."""
    return any(page.startswith(text) or b"\n" + text in page for text in (prefix.encode() for prefix in prefixes))
