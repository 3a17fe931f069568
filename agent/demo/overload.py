"""The overload demo: chats of three priorities, twice as many as the fleet can answer, without and with flow control.

Each conversation has one priority and one caller. The two callers of a priority send unequal numbers of chats, so that
a table can show whether the larger one takes the share of the smaller one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

from agent.clock import Clock
from agent.demo import client
from agent.demo.fleet import EMULATED, HOST, MODEL, DemoFleet
from agent.demo.report import UNKNOWN, TableRow, percentile
from agent.demo.screen import Screen
from agent.demo.workload import ChatTurn, WorkloadShape, plan

# Chats per second that the fleet can answer: a little less than it takes for a backlog to grow, 12.5 in virtual
# time (tests/demo/test_overload.py).
CAPACITY: Final = 12.0
LOAD: Final = 2.0  # times what the fleet can do
SECONDS: Final = 30.0
# Half as fast as the servers of the other demo, so that twice what they can do fits on one machine beside them.
SERVER: Final = replace(EMULATED, prefill_tokens_per_second=3500.0)
TTL_SECONDS: Final = 10.0  # instead of the default 60 s, so that the demo is over soon
WITHOUT: Final = "without"
WITH: Final = "with flow control"
LARGE, SMALL = "large", "small"
_LARGE_OF: Final = 3  # of so many conversations in a row, all but one are of the large caller
# What the agent answers a request that it does not serve: the code of its error -> the column of the table.
_REFUSED: Final = {"HTTP 429 overloaded": "shed", "HTTP 429 queue_timeout": "expired"}


class Objective(NamedTuple):
    """An objective of the demo: its name, and its priority."""

    name: str
    priority: int


OBJECTIVES: Final = (Objective("interactive", 10), Objective("standard", 0), Objective("batch", -1))


class SentChat(NamedTuple):
    """What became of one chat: `ttft_seconds` is None where it was not answered, and `refused` then `shed`, `expired`,
    or empty for a failure. `ended_at` is in seconds from the beginning of the run."""

    priority: int
    caller: str
    tokens: int
    ttft_seconds: float | None
    refused: str
    ended_at: float


@dataclass(slots=True)
class OverloadRun:
    """One run: its name, for how many seconds chats were sent, those that have ended, and failures by their text."""

    name: str
    seconds: float
    chats: list[SentChat]
    errors: dict[str, int]


def objective_of(turn: ChatTurn) -> Objective:
    """The objective of a chat: that of its conversation."""
    return OBJECTIVES[turn.conversation % len(OBJECTIVES)]


def caller_of(turn: ChatTurn) -> str:
    """The caller of a chat: that of its conversation."""
    return SMALL if turn.conversation // len(OBJECTIVES) % _LARGE_OF == 0 else LARGE


def overloading(shape: WorkloadShape, rate: float | None) -> WorkloadShape:
    """The shape with this rate, or where it is None with LOAD times the one that the fleet can answer."""
    return replace(shape, rate=LOAD * CAPACITY if rate is None else rate)


def settings(*, enabled: bool) -> Mapping[str, Any]:
    """The sections of the agent's configuration for a run."""
    return {
        "flowControl": {"enabled": enabled, "defaultRequestTTL": f"{TTL_SECONDS:.0f}s", "trustHeaders": "all"},
        "objectives": [{"name": each.name, "priority": each.priority} for each in OBJECTIVES],
    }


async def compare(
    fleet: DemoFleet, shape: WorkloadShape, rate: float | None, profile: str, screen: Screen, clock: Clock
) -> Sequence[OverloadRun]:
    """Run the workload without and with flow control, and print the table; `rate` as in `overloading`."""
    shape = overloading(shape, rate)
    turns = plan(shape)
    tokens = sum(turn.prompt_tokens for turn in turns) / max(1, len(turns))
    screen.print_line(
        f"Workload: {shape.rate:.0f} chats per second for {shape.seconds:g} s, {tokens:,.0f} prompt tokens each on "
        f"average. The fleet can answer {CAPACITY:.0f} per second. A third of the conversations has each of the "
        f"priorities {', '.join(str(each.priority) for each in OBJECTIVES)}; of each priority one caller has twice as "
        "many conversations as the other."
    )
    runs = []
    for name in (WITHOUT, WITH):
        await fleet.reset_prefix_caches()
        await fleet.start_agent(profile, settings(enabled=name == WITH))
        how = f"held for {TTL_SECONDS:.0f} s at most" if name == WITH else "each is sent on at once"
        screen.print_line(f"Sending {len(turns)} chats through Envoy; {how}. Caches are empty.")
        with screen.run(name, len(turns)) as on_progress:
            runs.append(await _send(fleet.ports.picker, name, turns, shape, clock, on_progress))
        fleet.check()
    screen.title(f"Results of {len(turns)} chats in each run")
    screen.table(("", *(run.name for run in runs)), table(runs))
    for line in notes(runs):
        screen.print_line(f"  {line}")
    return runs


async def _send(
    port: int,
    name: str,
    turns: Sequence[ChatTurn],
    shape: WorkloadShape,
    clock: Clock,
    on_progress: Callable[[client.RunProgress], None],
) -> OverloadRun:
    """Send each chat at its time, and wait for all answers."""
    run, progress = OverloadRun(name, shape.seconds, [], {}), client.RunProgress(len(turns))
    url, start = f"http://{HOST}:{port}{client.PATH}", clock.now()

    async def one(turn: ChatTurn) -> None:
        objective, caller = objective_of(turn), caller_of(turn)
        headers = {"x-llm-d-inference-objective": objective.name, "x-llm-d-inference-fairness-id": caller}
        progress.sent += 1
        on_progress(progress)
        ttft, refused = None, ""
        try:
            data = client.body(turn, MODEL, shape.answer_tokens)
            ttft = await client.send_chat(session, url, data, clock, headers)
            progress.ttft_seconds.append(ttft)
        except client.ChatFailed as failed:
            refused = _REFUSED.get(str(failed), "")
            if not refused:
                run.errors[str(failed)] = run.errors.get(str(failed), 0) + 1
                progress.errors[str(failed)] += 1
        finally:
            progress.ended += 1
            tokens = turn.prompt_tokens + shape.answer_tokens
            run.chats.append(SentChat(objective.priority, caller, tokens, ttft, refused, clock.now() - start))
            on_progress(progress)

    async with client.new_session() as session, asyncio.TaskGroup() as group:
        for turn in turns:
            await asyncio.sleep(max(0.0, start + turn.at - clock.now()))
            group.create_task(one(turn))
    return run


def table(runs: Sequence[OverloadRun]) -> list[TableRow]:
    """The rows: of each priority the latency, the tokens and the refusals, then those of all."""
    rows = []
    for objective in OBJECTIVES:
        chats = [[chat for chat in run.chats if chat.priority == objective.priority] for run in runs]
        label = f"priority {objective.priority}"
        rows += [
            TableRow(f"{label}: time to first token, p50", tuple(_ttft(each, 50) for each in chats)),
            TableRow(f"{label}: time to first token, p90", tuple(_ttft(each, 90) for each in chats)),
            TableRow(f"{label}: tokens per second", tuple(map(_rate, chats, [run.chats for run in runs]))),
            TableRow(f"{label}: answered", tuple(_answered(each) for each in chats)),
            TableRow(f"{label}: shed", tuple(_refused(each, "shed") for each in chats)),
            TableRow(f"{label}: expired", tuple(_refused(each, "expired") for each in chats)),
            TableRow(f"{label}: fairness of its two callers", tuple(map(_fairness, chats, runs))),
        ]
    rows += [
        TableRow("all: tokens per second", tuple(_rate(run.chats, run.chats) for run in runs)),
        TableRow("all: errors", tuple(f"{sum(run.errors.values())}" for run in runs)),
    ]
    return rows


def notes(runs: Sequence[OverloadRun]) -> list[str]:
    """Notes on the table, one sentence each."""
    lines = [
        "Tokens are those of the prompts and of the answers of answered chats, over the time of the whole run.",
        (
            "Fairness is Jain's index of what each caller got of its due while chats were sent, 1 at best: the callers "
            "of one priority are due equal tokens, and what one of them does not need is due to the other."
        ),
    ]
    first = OBJECTIVES[0].priority
    p90 = [percentile(_answers([chat for chat in run.chats if chat.priority == first]), 90) for run in runs]
    if p90[0] and p90[-1]:
        lines.append(f"priority {first}: p90 of the time to first token is {p90[-1] / p90[0]:.2f} of that without.")
    for run in runs:
        lines += [f"{run.name}: {count} x {error}" for error, count in sorted(run.errors.items())[:5]]
    return lines


def fairness(chats: Sequence[SentChat], seconds: float) -> float | None:
    """Jain's index over the callers: of the tokens answered in the first `seconds`, each over the caller's max-min fair
    share of all of them. None where nothing was answered."""
    wanted: dict[str, int] = {}
    served: dict[str, int] = {}
    for chat in chats:
        wanted[chat.caller] = wanted.get(chat.caller, 0) + chat.tokens
        answered = chat.ttft_seconds is not None and chat.ended_at <= seconds
        served[chat.caller] = served.get(chat.caller, 0) + (chat.tokens if answered else 0)
    left = float(sum(served.values()))
    if not left:
        return None
    parts = []
    for number, (caller, tokens) in enumerate(sorted(wanted.items(), key=lambda item: item[1])):
        due = min(float(tokens), left / (len(wanted) - number))
        left -= due
        parts.append(served[caller] / due)
    return sum(parts) ** 2 / (len(parts) * sum(part**2 for part in parts))


def _answers(chats: Sequence[SentChat]) -> list[float]:
    return [chat.ttft_seconds for chat in chats if chat.ttft_seconds is not None]


def _ttft(chats: Sequence[SentChat], percent: float) -> str:
    value = percentile(_answers(chats), percent)
    return UNKNOWN if value is None else f"{value:.2f} s"


def _rate(chats: Sequence[SentChat], of_run: Sequence[SentChat]) -> str:
    """Tokens of the answered ones of `chats`, per second until the last answer of the run."""
    last = max((chat.ended_at for chat in of_run if chat.ttft_seconds is not None), default=0.0)
    tokens = sum(chat.tokens for chat in chats if chat.ttft_seconds is not None)
    return f"{tokens / last:,.0f}" if last > 0 else UNKNOWN


def _answered(chats: Sequence[SentChat]) -> str:
    return f"{len(_answers(chats))} of {len(chats)}"


def _refused(chats: Sequence[SentChat], how: str) -> str:
    return f"{sum(chat.refused == how for chat in chats)}"


def _fairness(chats: Sequence[SentChat], run: OverloadRun) -> str:
    value = fairness(chats, run.seconds)
    return UNKNOWN if value is None else f"{value:.3f}"
