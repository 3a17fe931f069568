"""LoRA adapter slots: which adapters lie in memory, what a step pays for them, what the page shows."""

from __future__ import annotations

from collections.abc import Iterable

from agent.emulator.settings import Settings


class Slots:
    """At most `max_loras` adapters at a time; the longest loaded one that no running request uses leaves first.

    `text` is the running batch's adapters by admission, joined with commas; `seen` maps every text that ever was to the
    time at which its last step ended. vLLM keeps all of them on its page, "a,b" and "b,a" apart (recorded).
    """

    def __init__(self, settings: Settings, now: float) -> None:
        self.text = ""
        self.seen: dict[str, float] = {"": now}
        self._settings = settings
        self._loaded: dict[str, None] = {}

    def load(self, names: Iterable[str]) -> float:
        """Seconds that a step with requests of these adapters ("" for none) takes longer; brings missing ones in."""
        settings, loaded = self._settings, self._loaded
        wanted = dict.fromkeys(name for name in names if name)
        self.text = ",".join(wanted)
        missing = [name for name in wanted if name not in loaded]
        for name in missing:
            if len(loaded) >= settings.max_loras:
                del loaded[next(other for other in loaded if other not in wanted)]
            loaded[name] = None
        return (settings.lora_step_seconds if wanted else 0.0) + len(missing) * settings.lora_load_seconds

    def stepped(self, before: float, at: float, *, running: bool) -> None:
        """A run of steps with the present adapters ended at `at`, the last but one at `before`; is anything left?

        What a step leaves behind is what its end shows: if nothing runs any more, no adapter does.
        """
        self.seen[self.text] = at if running else before
        if not running:
            self.text = ""
            self.seen[""] = at
