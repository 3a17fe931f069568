"""The recorded loads, and how they are driven through the pure engine."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.emulator.engine import Engine
from agent.emulator.orders import Finished, Order, QueueFull
from agent.emulator.settings import Settings

FOLDER = Path(__file__).resolve().parent.parent / "recordings" / "vllm_loads"

# One set of rates for all five loads, from the recording (docs/emulator.md has the sums):
# a request alone wrote a token in 2.4 ms and four together in 3.21 ms (vLLM's own inter-token sums over
# load_two_loras' first request and over load_base), so a step costs 2.13 ms and 0.27 ms for each request; adapters made
# a step of four last 3.98 and 4.73 ms, in the mean 1.15 ms more; prompts were read at 17,000 tokens a second, which
# gives the recorded times to first token of load_base (384 tokens at once), load_shared_prefix (1,020) and
# load_queue_limit12 (3,231); and a request took 20 ms to get from the client to the scheduler.
RATES = Settings(
    max_model_len=2048,
    max_loras=2,
    prefill_tokens_per_second=17_000.0,
    step_seconds=0.00213,
    step_seconds_per_request=0.00027,
    lora_step_seconds=0.00115,
)
FRONT_END_SECONDS = 0.020

FULL = replace(RATES, max_num_seqs=4, num_blocks=100, block_size=32)
CBOR = replace(RATES, max_num_queued_reqs=12, num_blocks=30, block_size=128)


@dataclass(frozen=True)
class Load:
    """One recording. `late` is when all requests but the first reached the server, and `began` when the load began, in
    the recording's own time, where that is not one scrape period before the first scrape (see docs/emulator.md)."""

    name: str
    settings: Settings
    late: float = 0.0
    began: float | None = None

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        requests = json.loads((FOLDER / f"{self.name}.requests.json").read_text())
        lines = (FOLDER / f"{self.name}.scrapes.jsonl").read_text().splitlines()
        return requests, [json.loads(line) for line in lines]

    def before(self) -> dict[str, int]:
        return json.loads((FOLDER / "before.json").read_text())[self.name]


# load_two_loras: the recording client wrote 300 chunks of its first stream without a break, so its timer came late and
# its other requests left only when that stream was over, after 0.755 s (their recorded times to first token are 0.76 to
# 0.81 s). Its beginning is counted back from its end: the last step, 5.6454 s into the load, was at ...432.9629.
LOADS = (
    Load("load_base_seqs4_blocks100", FULL),
    Load("load_shared_prefix", FULL),
    Load("load_two_loras", FULL, late=0.755, began=1795344432.9629 - 5.6454),
    Load("load_three_loras_max2", FULL),
    Load("load_queue_limit12", CBOR),
)


@dataclass(frozen=True)
class Seen:
    """What a page says, recorded or emulated."""

    running: float
    waiting: float
    deferred: float
    kv_usage: float
    prefix_hits: float
    preemptions: float


def recorded(load: Load, scrape: dict[str, Any]) -> Seen:
    return Seen(
        running=scrape["running"],
        waiting=scrape["waiting"],
        deferred=float(dict(scrape["capacity"])["deferred"]),
        kv_usage=scrape["kv"],
        prefix_hits=scrape["ph"] - load.before()["prefix_hits"],
        preemptions=scrape["preempt"],
    )


def scraped_at(load: Load, scrapes: list[dict[str, Any]], requests: dict[str, Any]) -> list[float]:
    """When each scrape's page was asked for, seconds from the load's beginning."""
    first = scrapes[0]
    began = load.began or first["t"] - first["scrape_s"] - requests["args"]["every"]
    return [scrape["t"] - scrape["scrape_s"] - began for scrape in scrapes]


def orders(load: Load, requests: dict[str, Any]) -> list[Order]:
    """The load's requests. Prompts differ from their first token on, or (`shared`) only in their last three."""
    arguments = requests["args"]
    models = arguments["models"].split(",")
    size = load.settings.block_size
    found = []
    lengths = [r["usage"]["prompt_tokens"] if r.get("usage") else 650 for r in requests["results"]]
    for place, tokens in enumerate(lengths):
        model = models[place % len(models)]
        common = (min(lengths) - 2) // size if arguments["shared"] else 0
        blocks = (tokens + arguments["max_tokens"]) // size
        hashes = [block if block < common else (place + 1) * 1_000_000 + block for block in range(blocks)]
        lora = "" if model == "tiny" else model
        found.append(Order(tokens, arguments["max_tokens"], hashes, lora, max_tokens=arguments["max_tokens"]))
    return found


def started(load: Load, requests: dict[str, Any]) -> Engine:
    """An engine with the load's requests on their way."""
    engine = Engine(load.settings)
    for place, order in enumerate(orders(load, requests)):
        late = load.late if place else 0.0
        try:
            engine.submit(late + FRONT_END_SECONDS, order)
        except QueueFull:
            assert requests["results"][place]["usage"] is None, "the recorded server took this request"
    return engine


def replay(load: Load) -> list[tuple[float, Seen, Seen]]:
    """(seconds, recorded, emulated) for each scrape of the load, and once more for its end."""
    requests, scrapes = load.read()
    engine = started(load, requests)
    times = scraped_at(load, scrapes, requests)
    found = []
    for at, scrape in zip((*times, 3600.0), (*scrapes, scrapes[-1]), strict=True):
        engine.advance(at)
        tally = engine.tally
        emulated = Seen(
            engine.running, engine.waiting, engine.deferred, engine.kv_usage, tally.prefix_hits, tally.preemptions
        )
        found.append((at, recorded(load, scrape), emulated))
    return found


def lasts(load: Load) -> tuple[float, float]:
    """(recorded, emulated) seconds from the load's beginning to its last token."""
    requests, _ = load.read()
    events = started(load, requests).advance(3600.0)
    emulated = max(event.at for event in events if isinstance(event, Finished))
    return max(result["e2e"] for result in requests["results"]), emulated
