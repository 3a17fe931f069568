"""LoRA adapter slots: which adapters are loaded, how much they slow a step down, and what the page shows of them."""

from __future__ import annotations

from collections.abc import Iterable

from agent.emulator.config import EmulatorConfig


class AdapterSlots:
    """At most `max_loras` loaded adapters; the one loaded first that no running request uses is evicted first.

    `active` holds the adapters of the running batch in the order of admission, joined with commas. `last_step` maps
    every such text so far to the end of its last step: vLLM keeps all of them on its page, "a,b" and "b,a" apart
    (recorded).
    """

    def __init__(self, config: EmulatorConfig, now: float) -> None:
        self.active = ""
        self.last_step: dict[str, float] = {"": now}
        self._config = config
        self._loaded: dict[str, None] = {}

    def load(self, adapters: Iterable[str]) -> float:
        """Load the adapters of a step's requests ("" for none); seconds by which they lengthen the step."""
        config, loaded = self._config, self._loaded
        wanted = dict.fromkeys(name for name in adapters if name)
        self.active = ",".join(wanted)
        missing = [name for name in wanted if name not in loaded]
        for name in missing:
            if len(loaded) >= config.max_loras:
                del loaded[next(other for other in loaded if other not in wanted)]
            loaded[name] = None
        return (config.lora_step_seconds if wanted else 0.0) + len(missing) * config.lora_load_seconds

    def end_steps(self, before: float, at: float, *, running: bool) -> None:
        """Record that the last step with these adapters ended at `at` and the one before it at `before`.

        The page shows the state at the end of a step: with no request running, no adapter is active.
        """
        self.last_step[self.active] = at if running else before
        if not running:
            self.active = ""
            self.last_step[""] = at
