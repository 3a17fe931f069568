"""`objectives`: the priorities of requests, by the objective that they name or that their model is bound to."""

from __future__ import annotations

from dataclasses import dataclass

from agent.config.flow_control import MAX_PRIORITY, MIN_PRIORITY
from agent.config.options import option
from agent.config.values import Duration, Name, Number, WordList


@dataclass(frozen=True, slots=True)
class ObjectiveConfig:
    """Requests that name this objective: how they are served when requests wait, and what they are measured against."""

    name: str = option(
        Name(), "what requests name in `x-llm-d-inference-objective`", required="write a name, such as batch"
    )
    priority: int = option(
        Number(MIN_PRIORITY, MAX_PRIORITY, whole=True),
        "higher ones are served first; only those below 0 are shed",
        required="write a whole number, such as 10, or -1 for requests that may be shed",
    )
    models: tuple[str, ...] = option(
        WordList(), "models whose requests have this objective where they name none", (), unset="none"
    )
    pool: str = option(Name(), "the pool to which it applies", "", unset="all pools")
    ttft: float | None = option(
        Duration(0.001, 3600),
        "the wanted time to the first token, which responses are measured against (SLO)",
        None,
        unset="none",
    )
    time_per_output_token: float | None = option(
        Duration(0.0001, 60),
        "the wanted time per output token after the first one, as `ttft`",
        None,
        unset="none",
    )

    @property
    def key(self) -> str:
        """Its name, and its pool where it has one."""
        return f"{self.name} of {self.pool}" if self.pool else self.name
