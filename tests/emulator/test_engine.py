"""The pure engine: properties for any arrivals, and each rule of the scheduler."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.emulator.config import EmulatorConfig
from agent.emulator.engine import EngineSimulation
from agent.emulator.jobs import DoesNotFit, Finished, FirstToken, JobSpec, QueueFull, TokenProgress
from agent.emulator.metrics import PageWriter

CONFIGS = st.builds(
    EmulatorConfig,
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(8, 200),
    num_blocks=st.integers(20, 40),
    block_size=st.sampled_from([4, 16]),
    max_model_len=st.just(64),
    max_num_queued_reqs=st.one_of(st.none(), st.integers(1, 5)),
    prefill_tokens_per_second=st.sampled_from([1000.0, 3333.3]),
    step_seconds=st.sampled_from([0.0, 0.01, 0.0137]),
    step_seconds_per_request=st.sampled_from([0.0, 0.001]),
    max_loras=st.just(2),
    lora_step_seconds=st.sampled_from([0.0, 0.002]),
    lora_load_seconds=st.sampled_from([0.0, 0.05]),
    startup_seconds=st.sampled_from([0.0, 0.5]),
    kv_cache_metrics=st.booleans(),
)


@dataclass(frozen=True)
class Action:
    """`gap` seconds after the previous action, a request arrives or an earlier one is aborted."""

    gap: float
    prompt: int
    output: int
    family: int  # requests of a family share the beginning of their prompts
    lora: str
    stream: bool
    abort: int | None


ACTIONS = st.lists(
    st.builds(
        Action,
        gap=st.sampled_from([0.0, 0.003, 0.0137, 0.1, 0.7]),
        prompt=st.integers(1, 44),
        output=st.integers(1, 20),
        family=st.integers(0, 3),
        lora=st.sampled_from(["", "", "a", "b", "c"]),
        stream=st.booleans(),
        abort=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 30)),
    ),
    max_size=30,
)


class EngineRun:
    """Actions applied to an engine, with `extra` more calls of `advance` between two actions at different times.

    There is none at the time of an action, as it would settle that time: later actions would join the next step.
    """

    def __init__(self, config: EmulatorConfig, actions: list[Action], extra: int) -> None:
        self.engine = EngineSimulation(config)
        self.writer = PageWriter(config, "m")
        self.first: dict[int, float] = {}
        self.finished: dict[int, tuple[float, int, str]] = {}
        self.streamed: dict[int, int] = {}
        self.accepted = self.refused = 0
        now = 0.0
        for action in actions:
            for call in range(1, extra + 1) if action.gap else ():
                self.advance(now + action.gap * call / (extra + 1))
            now += action.gap
            if action.abort is not None:
                self.engine.abort(now, action.abort)
                continue
            size = config.block_size
            hashes = [action.family * 1000 + block for block in range((action.prompt + action.output) // size)]
            try:
                self.engine.submit(now, JobSpec(action.prompt, action.output, hashes, action.lora, action.stream))
                self.accepted += 1
            except QueueFull:
                self.refused += 1
        self.now = now

    def advance(self, now: float) -> None:
        for event in self.engine.advance(now):
            if isinstance(event, FirstToken):
                self.first[event.id] = event.at
            elif isinstance(event, TokenProgress):
                assert event.tokens > self.streamed.get(event.id, 1)
                self.streamed[event.id] = event.tokens
            else:
                assert event.id not in self.finished
                self.finished[event.id] = (event.at, event.tokens, event.reason)
            assert event.at <= now
        cache = self.engine.cache
        assert 0 <= cache.used <= cache.capacity
        assert 0 <= cache.idle <= cache.capacity - cache.used
        assert self.engine.running <= self.engine.config.max_num_seqs
        assert self.engine.running + self.engine.waiting + len(self.finished) == self.accepted

    def finish(self, steps: int = 100_000) -> None:
        """Advance from event to event until nothing is left to do."""
        for _ in range(steps):
            at = self.engine.next_event_at()
            if at is None:
                return
            self.advance(at)
        pytest.fail("the engine does not become idle")


@given(CONFIGS, ACTIONS, st.integers(1, 4))
def test_one_advance_and_many_small_ones_give_the_same_page_and_the_same_times(config, actions, extra):
    once, often = EngineRun(config, actions, 0), EngineRun(config, actions, extra)
    for after in (0.0, 0.0421, 0.3, 60.0):
        once.advance(once.now + after)
        for part in range(1, 8):
            often.advance(often.now + after * part / 7)
        often.advance(often.now + after)
        page = once.writer.page(once.engine, once.now + after)
        assert page == often.writer.page(often.engine, often.now + after)
        once.now += after
        often.now += after
    assert once.first == often.first
    assert once.finished == often.finished


@given(CONFIGS, ACTIONS)
def test_every_accepted_request_ends_and_every_block_is_released(config, actions):
    run = EngineRun(config, actions, 1)
    run.finish()
    assert run.engine.running == run.engine.waiting == run.engine.cache.used == 0
    assert len(run.finished) == run.accepted
    counters = run.engine.counters
    done = [reason for _, _, reason in run.finished.values()]
    assert counters.success["length"] == done.count("length")
    assert counters.aborted == done.count("abort")
    assert counters.rejections == run.refused
    assert counters.generation_tokens >= sum(
        tokens for _, tokens, reason in run.finished.values() if reason == "length"
    )
    assert run.engine.kv_usage == 0


@given(CONFIGS, ACTIONS)
def test_the_first_token_comes_after_the_prompt_is_computed_and_before_the_last_token(config, actions):
    run = EngineRun(config, actions, 0)
    run.finish()
    for request, (at, tokens, reason) in run.finished.items():
        if reason == "length":
            assert config.startup_seconds < run.first[request] <= at
            assert (tokens == 1) == (run.first[request] == at) or config.step_seconds == 0


@given(CONFIGS, ACTIONS)
def test_equal_arrivals_give_equal_pages(config, actions):
    pages = []
    for _ in range(2):
        run = EngineRun(config, actions, 0)
        pages.append(run.writer.page(run.engine, run.now + 0.05))
    assert pages[0] == pages[1]


def remaining(engine: EngineSimulation) -> dict[int, tuple[float, float]]:
    """id -> (first token, end) of all unfinished requests."""
    first: dict[int, float] = {}
    found = {}
    while (at := engine.next_event_at()) is not None:
        for event in engine.advance(at):
            if isinstance(event, FirstToken):
                first[event.id] = event.at
            elif isinstance(event, Finished):
                found[event.id] = (first[event.id], event.at)
    return found


def test_a_prefill_only_server_serves_first_come_first_served_at_its_rate():
    engine = EngineSimulation(EmulatorConfig.prefill_only(blocks=100, block_size=512, prefill_tokens_per_second=1000.0))
    chain = [1, 2, 3]
    a = engine.submit(0.0, JobSpec(2000, 1, chain))
    b = engine.submit(0.5, JobSpec(1000, 1))
    c = engine.submit(0.6, JobSpec(2000, 1, chain))  # 3 of its blocks are cached: 464 tokens are computed
    times = remaining(engine)
    assert times[a] == pytest.approx((2.0, 2.0))
    assert times[b] == pytest.approx((3.0, 3.0))
    assert times[c] == pytest.approx((3.464, 3.464))


def test_a_step_gets_slower_with_the_batch():
    config = EmulatorConfig(step_seconds=0.01, step_seconds_per_request=0.005, prefill_tokens_per_second=1e9)
    alone, together = EngineSimulation(config), EngineSimulation(config)
    alone.submit(0.0, JobSpec(1, 101))
    for _ in range(4):
        together.submit(0.0, JobSpec(1, 101))
    assert remaining(alone)[1][1] == pytest.approx(0.01 + 100 * 0.015)
    assert remaining(together)[1][1] == pytest.approx(0.01 + 100 * 0.030)


def test_a_long_prompt_is_prefilled_in_chunks_beside_the_tokens_of_others():
    config = EmulatorConfig(
        max_num_seqs=4,
        max_num_batched_tokens=100,
        step_seconds=1.0,
        step_seconds_per_request=0.0,
        prefill_tokens_per_second=1e9,
    )
    engine = EngineSimulation(config)
    short = engine.submit(0.0, JobSpec(10, 50))
    long = engine.submit(1.5, JobSpec(400, 1))
    times = remaining(engine)
    assert times[short] == pytest.approx((1.0, 50.0), abs=1e-3)
    # It is admitted at 2 s and gets 99 tokens per step: the 400th is computed in the fifth step.
    assert times[long][0] == pytest.approx(7.0, abs=1e-3)


def test_a_prompt_of_exactly_two_blocks_hits_one_and_with_one_token_more_both():
    for prompt, hit in ((31, 0), (32, 0), (33, 32), (63, 32), (64, 32), (65, 64), (96, 64)):
        engine = EngineSimulation(EmulatorConfig(block_size=32))
        for at in (0.0, 10.0):
            engine.submit(at, JobSpec(prompt, 1, range(prompt // 32)))
        engine.advance(20.0)
        assert engine.counters.prefix_hits == hit, prompt


def test_kv_usage_counts_running_requests_only_and_the_cache_stays_full():
    engine = EngineSimulation(EmulatorConfig(num_blocks=11, block_size=16, max_model_len=160))
    engine.submit(0.0, JobSpec(160, 1, range(10)))
    engine.advance(0.001)
    assert engine.kv_usage == 1.0
    engine.advance(9.0)
    assert engine.kv_usage == 0.0
    assert engine.cache.idle == 10


def test_the_least_recently_used_prefix_is_evicted_first_from_its_end():
    engine = EngineSimulation(EmulatorConfig(num_blocks=7, block_size=16, max_model_len=96))
    engine.submit(0.0, JobSpec(48, 1, [1, 2, 3]))
    engine.advance(1.0)
    engine.submit(1.0, JobSpec(48, 1, [4, 5, 6]))
    engine.advance(2.0)
    engine.submit(2.0, JobSpec(32, 1, [7, 8]))
    engine.advance(3.0)
    assert engine.cache.match([1, 2, 3], 3) == 1
    assert engine.cache.match([4, 5, 6], 3) == 3


def test_without_a_free_block_the_request_admitted_last_is_preempted_and_recomputed_later():
    engine = EngineSimulation(EmulatorConfig(num_blocks=5, block_size=4, max_model_len=16, max_num_seqs=2))
    old = engine.submit(0.0, JobSpec(6, 8, [1, 2, 3]))
    young = engine.submit(0.0, JobSpec(6, 8, [4, 5, 6]))
    finished: list[int] = []
    seen = set()
    while (at := engine.next_event_at()) is not None:
        finished += [event.id for event in engine.advance(at) if isinstance(event, Finished)]
        seen.add((engine.running, engine.waiting, engine.counters.preemptions))
    assert (1, 1, 0) in seen  # it waits although the batch has room, and is not counted yet (recorded)
    assert finished == [old, young]
    assert engine.counters.preemptions == 1
    assert engine.counters.request_preemptions.sum == 1
    assert engine.counters.success["length"] == 2


def test_a_third_adapter_is_deferred_while_two_fill_the_slots():
    engine = EngineSimulation(EmulatorConfig(max_loras=2, max_num_seqs=4))
    for name in ("a", "b", "c", "a"):
        engine.submit(0.0, JobSpec(10, 50, lora=name))
    engine.advance(0.1)
    assert (engine.running, engine.waiting, engine.deferred) == (3, 1, 1)
    assert engine.adapters.active == "a,b"
    engine.advance(9.0)
    assert engine.counters.success["length"] == 4


def test_a_request_that_could_never_run_is_refused_at_once():
    engine = EngineSimulation(EmulatorConfig(num_blocks=5, block_size=4, max_model_len=16))
    with pytest.raises(DoesNotFit, match="needs 5 blocks, the server has 4"):
        engine.submit(0.0, JobSpec(17, 1))
    with pytest.raises(DoesNotFit, match="at least one prompt token"):
        engine.submit(0.0, JobSpec(0, 1))
    with pytest.raises(DoesNotFit, match="max_loras is 0"):
        engine.submit(0.0, JobSpec(1, 1, lora="a"))
    assert engine.next_event_at() is None


def test_a_time_before_the_last_one_is_refused():
    engine = EngineSimulation(EmulatorConfig(), now=5.0)
    with pytest.raises(ValueError, match="time went back"):
        engine.advance(4.0)


def test_an_aborted_request_leaves_at_the_end_of_the_step_and_its_place_is_taken():
    engine = EngineSimulation(EmulatorConfig(max_num_seqs=1, step_seconds=0.1, step_seconds_per_request=0.0))
    first = engine.submit(0.0, JobSpec(1, 1000))
    second = engine.submit(0.0, JobSpec(1, 2))
    third = engine.submit(0.0, JobSpec(1, 2))
    engine.advance(1.0)
    assert engine.abort(1.05, first)
    assert engine.abort(1.05, third)
    assert not engine.abort(1.05, third)
    assert (engine.running, engine.waiting) == (1, 1)
    finished = {event.id: event for event in engine.advance(9.0) if isinstance(event, Finished)}
    assert finished[first].reason == finished[third].reason == "abort"
    assert finished[second].reason == "length"
    assert engine.counters.success["abort"] == 0  # vLLM does not count them (recorded)


def test_an_answer_is_cached_so_that_the_next_turn_hits_it():
    engine = EngineSimulation(EmulatorConfig(block_size=4, max_model_len=64, num_blocks=64))
    engine.submit(0.0, JobSpec(8, 9, [1, 2, 3, 4]))
    engine.advance(1.0)
    engine.submit(1.0, JobSpec(24, 1, [1, 2, 3, 4, 5, 6]))
    engine.advance(2.0)
    assert engine.counters.prefix_hits == 16
