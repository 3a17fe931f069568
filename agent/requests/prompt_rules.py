"""How engines differ in what they make of a request: what they leave out, what they join, how they identify media.

    vllm      leaves out system blocks that begin with the attribution line of a coding agent (vllm#36829), joins the
              blocks of `system` without a separator, and takes the `uuid` of an image, audio or video for its content
              (docs/features/multimodal_inputs.md of vLLM)
    sglang    joins the blocks with line feeds; caches separately for `extra_key` and `lora_path`. Releases differ in
              whether they leave the attribution line out (sglang#21064). It is left out here: where it is rendered,
              each request begins differently, no server has any of it cached, and no pick can gain or lose a hit
    llamacpp  keeps the attribution line, and overwrites the five characters of its `cch` field (llama.cpp#21793)

A pool whose engine is unknown, or which has several, is read as vLLM's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

# The beginning of the line that a coding agent puts first into `system`, different in each request.
ATTRIBUTION: Final = "x-anthropic-billing-header"

_CCH: Final = "cch="
_CCH_LENGTH: Final = 5


class PromptRules(NamedTuple):
    """The rules of one engine.

    `drops_attribution`: system blocks with the attribution line are left out. `masks_attribution`: the part of the line
    that changes is overwritten. `system_separator`: what joins the blocks of `system`. `media_uuids`: the `uuid` of a
    media part identifies its content. `salts`: the members of a body that separate its blocks in the cache.
    """

    drops_attribution: bool = True
    masks_attribution: bool = False
    system_separator: str = ""
    media_uuids: bool = True
    salts: tuple[str, ...] = ("cache_salt",)


DEFAULT: Final = PromptRules()
RULES: Final[Mapping[str, PromptRules]] = {
    "vllm": DEFAULT,
    "sglang": PromptRules(system_separator="\n", media_uuids=False, salts=("cache_salt", "extra_key", "lora_path")),
    "llamacpp": PromptRules(drops_attribution=False, masks_attribution=True, media_uuids=False),
}


def rules_of(engine: str) -> PromptRules:
    """The rules of the engine; those of vLLM for an engine without rules of its own."""
    return RULES.get(engine, DEFAULT)


def masked(text: str) -> str:
    """The text as llama.cpp renders it: an attribution line has a constant `cch`."""
    if not text.startswith(ATTRIBUTION + ":"):
        return text
    at = text.find(_CCH, len(ATTRIBUTION))
    end = at + len(_CCH) + _CCH_LENGTH
    if at < 0 or text[end : end + 1] != ";":
        return text
    return text[: at + len(_CCH)] + "f" * _CCH_LENGTH + text[end:]
