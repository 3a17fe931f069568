"""The recorded loads, and their replay by the pure engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import Finished, JobSpec, QueueFull

FOLDER = Path(__file__).resolve().parent.parent / "recordings" / "vllm_loads"

# One set of rates for all five loads, from recorded times (docs/reference/emulator.md): the inter-token latency of one
# request is 2.4 ms (first request of load_two_loras) and of four requests 3.21 ms (load_base), so a step takes 2.13 ms
# and 0.27 ms for each request. With adapters a step of four takes 3.98 and 4.73 ms, on average 1.15 ms more. A prefill
# rate of 17,000 tokens per second gives the recorded times to first token of load_base (384 tokens at once),
# load_shared_prefix (1,020) and load_queue_limit12 (3,231). A request takes 20 ms from the client to the scheduler.
RATES = EmulatorConfig(
    max_model_len=2048,
    max_loras=2,
    prefill_tokens_per_second=17_000.0,
    step_seconds=0.00213,
    step_seconds_per_request=0.00027,
    lora_step_seconds=0.00115,
)
FRONT_END_SECONDS = 0.020

FOUR_SEQS = replace(RATES, max_num_seqs=4, num_blocks=100, block_size=32)
QUEUE_LIMIT = replace(RATES, max_num_queued_reqs=12, num_blocks=30, block_size=128)


@dataclass(frozen=True)
class RecordedLoad:
    """One recording. `late` is when all requests but the first reached the server.

    `began` is when the load began, in the recording's time, where that is not one scrape interval before the first
    scrape (docs/reference/emulator.md).
    """

    name: str
    config: EmulatorConfig
    late: float = 0.0
    began: float | None = None

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        requests = json.loads((FOLDER / f"{self.name}.requests.json").read_text())
        lines = (FOLDER / f"{self.name}.scrapes.jsonl").read_text().splitlines()
        return requests, [json.loads(line) for line in lines]

    def before(self) -> dict[str, int]:
        return json.loads((FOLDER / "before.json").read_text())[self.name]


# load_two_loras: the recording client processed the first stream without a break, so its timer was late and it sent the
# other requests when that stream ended, after 0.755 s (their recorded times to first token are 0.76 to 0.81 s). The
# load's beginning is computed from its end: its last step, 5.6454 s after the beginning, was at ...432.9629.
LOADS = (
    RecordedLoad("load_base_seqs4_blocks100", FOUR_SEQS),
    RecordedLoad("load_shared_prefix", FOUR_SEQS),
    RecordedLoad("load_two_loras", FOUR_SEQS, late=0.755, began=1795344432.9629 - 5.6454),
    RecordedLoad("load_three_loras_max2", FOUR_SEQS),
    RecordedLoad("load_queue_limit12", QUEUE_LIMIT),
)


@dataclass(frozen=True)
class QueueState:
    """The values of a page, recorded or emulated."""

    running: float
    waiting: float
    deferred: float
    kv_usage: float
    prefix_hits: float
    preemptions: float


def recorded(load: RecordedLoad, scrape: dict[str, Any]) -> QueueState:
    return QueueState(
        running=scrape["running"],
        waiting=scrape["waiting"],
        deferred=float(dict(scrape["capacity"])["deferred"]),
        kv_usage=scrape["kv"],
        prefix_hits=scrape["ph"] - load.before()["prefix_hits"],
        preemptions=scrape["preempt"],
    )


def scraped_at(load: RecordedLoad, scrapes: list[dict[str, Any]], requests: dict[str, Any]) -> list[float]:
    """When each page was requested, in seconds from the beginning of the load."""
    first = scrapes[0]
    began = load.began or first["t"] - first["scrape_s"] - requests["args"]["every"]
    return [scrape["t"] - scrape["scrape_s"] - began for scrape in scrapes]


def job_specs(load: RecordedLoad, requests: dict[str, Any]) -> list[JobSpec]:
    """The requests of the load. Prompts have no common prefix, or (`shared`) differ only in their last tokens."""
    arguments = requests["args"]
    models = arguments["models"].split(",")
    size = load.config.block_size
    specs = []
    lengths = [r["usage"]["prompt_tokens"] if r.get("usage") else 650 for r in requests["results"]]
    for index, tokens in enumerate(lengths):
        model = models[index % len(models)]
        common = (min(lengths) - 2) // size if arguments["shared"] else 0
        blocks = (tokens + arguments["max_tokens"]) // size
        hashes = [block if block < common else (index + 1) * 1_000_000 + block for block in range(blocks)]
        lora = "" if model == "tiny" else model
        specs.append(JobSpec(tokens, arguments["max_tokens"], hashes, lora, max_tokens=arguments["max_tokens"]))
    return specs


def submitted(load: RecordedLoad, requests: dict[str, Any]) -> EngineSimulation:
    """An engine with all requests of the load submitted."""
    engine = EngineSimulation(load.config)
    for index, spec in enumerate(job_specs(load, requests)):
        late = load.late if index else 0.0
        try:
            engine.submit(late + FRONT_END_SECONDS, spec)
        except QueueFull:
            assert requests["results"][index]["usage"] is None, "the recorded server accepted this request"
    return engine


def replay(load: RecordedLoad) -> list[tuple[float, QueueState, QueueState]]:
    """(seconds, recorded, emulated) for each scrape of the load and for its end."""
    requests, scrapes = load.read()
    engine = submitted(load, requests)
    times = scraped_at(load, scrapes, requests)
    states = []
    for at, scrape in zip((*times, 3600.0), (*scrapes, scrapes[-1]), strict=True):
        engine.advance(at)
        emulated = QueueState(
            engine.running,
            engine.waiting,
            engine.deferred,
            engine.kv_usage,
            engine.counters.prefix_hits,
            engine.counters.preemptions,
        )
        states.append((at, recorded(load, scrape), emulated))
    return states


def duration(load: RecordedLoad) -> tuple[float, float]:
    """(recorded, emulated) seconds from the load's beginning to its last token."""
    requests, _ = load.read()
    events = submitted(load, requests).advance(3600.0)
    emulated = max(event.at for event in events if isinstance(event, Finished))
    return max(result["e2e"] for result in requests["results"]), emulated
