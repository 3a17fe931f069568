"""The registry of engines: name -> where its table is. A new engine is one file here and one line below."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, cast

if TYPE_CHECKING:
    from agent.engines.table import Engine

ENGINES: Final[Mapping[str, str]] = {
    "jetstream": "agent.engines.jetstream:JETSTREAM",
    "llamacpp": "agent.engines.llamacpp:LLAMACPP",
    "sglang": "agent.engines.sglang:SGLANG",
    "tgi": "agent.engines.tgi:TGI",
    "triton": "agent.engines.triton:TRITON",
    "triton-tensorrt-llm": "agent.engines.triton:TRITON_TENSORRT_LLM",
    "trtllm-serve": "agent.engines.trtllm_serve:TRTLLM_SERVE",
    "vllm": "agent.engines.vllm:VLLM",
}


def engine(name: str) -> Engine:
    """The engine of this name; ValueError, with the known names, where there is none."""
    where = ENGINES.get(name)
    if where is None:
        raise ValueError(f"there is no engine {name!r}: it can be {', '.join(sorted(ENGINES))}")
    return cast("Engine", pkgutil.resolve_name(where))
