"""The pure engine: what holds for all arrivals, and the scheduler's rules one by one."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.emulator.engine import Engine
from agent.emulator.metrics import PageWriter
from agent.emulator.orders import DoesNotFit, Finished, FirstToken, Order, QueueFull, Tokens
from agent.emulator.settings import Settings

SETTINGS = st.builds(
    Settings,
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
class Act:
    """`gap` seconds after the one before, a request comes or one that came is aborted."""

    gap: float
    prompt: int
    output: int
    family: int  # requests of a family share their prompt's beginning
    lora: str
    stream: bool
    abort: int | None


ACTS = st.lists(
    st.builds(
        Act,
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


class Run:
    """Acts played on an engine, with `looks` more calls of `advance` between any two instants at which something comes
    in. (A call at such an instant settles it: what comes in after it joins the next step.)"""

    def __init__(self, settings: Settings, acts: list[Act], looks: int) -> None:
        self.engine = Engine(settings)
        self.writer = PageWriter(settings, "m")
        self.first: dict[int, float] = {}
        self.over: dict[int, tuple[float, int, str]] = {}
        self.streamed: dict[int, int] = {}
        self.accepted = self.refused = 0
        now = 0.0
        for act in acts:
            for look in range(1, looks + 1) if act.gap else ():
                self.look(now + act.gap * look / (looks + 1))
            now += act.gap
            if act.abort is not None:
                self.engine.abort(now, act.abort)
                continue
            size = settings.block_size
            hashes = [act.family * 1000 + block for block in range((act.prompt + act.output) // size)]
            try:
                self.engine.submit(now, Order(act.prompt, act.output, hashes, act.lora, act.stream))
                self.accepted += 1
            except QueueFull:
                self.refused += 1
        self.now = now

    def look(self, now: float) -> None:
        for event in self.engine.advance(now):
            if isinstance(event, FirstToken):
                self.first[event.id] = event.at
            elif isinstance(event, Tokens):
                assert event.tokens > self.streamed.get(event.id, 1)
                self.streamed[event.id] = event.tokens
            else:
                assert event.id not in self.over
                self.over[event.id] = (event.at, event.tokens, event.reason)
            assert event.at <= now
        cache = self.engine.cache
        assert 0 <= cache.used <= cache.capacity
        assert 0 <= cache.idle <= cache.capacity - cache.used
        assert self.engine.running <= self.engine.settings.max_num_seqs
        assert self.engine.running + self.engine.waiting + len(self.over) == self.accepted

    def finish(self, steps: int = 100_000) -> None:
        """Play until nothing is left to do, from event to event."""
        for _ in range(steps):
            at = self.engine.next_event_at()
            if at is None:
                return
            self.look(at)
        pytest.fail("the engine is never done")


@given(SETTINGS, ACTS, st.integers(1, 4))
def test_one_leap_and_many_small_steps_come_to_the_same_page_and_the_same_times(settings, acts, looks):
    leaping, looking = Run(settings, acts, 0), Run(settings, acts, looks)
    for after in (0.0, 0.0421, 0.3, 60.0):
        leaping.look(leaping.now + after)
        for part in range(1, 8):
            looking.look(looking.now + after * part / 7)
        looking.look(looking.now + after)
        leap = leaping.writer.page(leaping.engine, leaping.now + after)
        assert leap == looking.writer.page(looking.engine, looking.now + after)
        leaping.now += after
        looking.now += after
    assert leaping.first == looking.first
    assert leaping.over == looking.over


@given(SETTINGS, ACTS)
def test_every_accepted_request_ends_and_every_block_is_given_back(settings, acts):
    run = Run(settings, acts, 1)
    run.finish()
    assert run.engine.running == run.engine.waiting == run.engine.cache.used == 0
    assert len(run.over) == run.accepted
    tally = run.engine.tally
    done = [reason for _, _, reason in run.over.values()]
    assert tally.success["length"] == done.count("length")
    assert tally.aborted == done.count("abort")
    assert tally.rejections == run.refused
    assert tally.generation_tokens >= sum(tokens for _, tokens, reason in run.over.values() if reason == "length")
    assert run.engine.kv_usage == 0


@given(SETTINGS, ACTS)
def test_the_first_token_comes_before_the_last_and_after_the_prompt_could_be_read(settings, acts):
    run = Run(settings, acts, 0)
    run.finish()
    for request, (at, tokens, reason) in run.over.items():
        if reason == "length":
            assert settings.startup_seconds < run.first[request] <= at
            assert (tokens == 1) == (run.first[request] == at) or settings.step_seconds == 0


@given(SETTINGS, ACTS)
def test_the_same_arrivals_make_the_same_page(settings, acts):
    pages = []
    for _ in range(2):
        run = Run(settings, acts, 0)
        pages.append(run.writer.page(run.engine, run.now + 0.05))
    assert pages[0] == pages[1]


def ends(engine: Engine) -> dict[int, tuple[float, float]]:
    """{id: (first token, end)} of everything that the engine still has to do."""
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
    engine = Engine(Settings.prefill_only(blocks=100, block_size=512, prefill_tokens_per_second=1000.0))
    chain = [1, 2, 3]
    a = engine.submit(0.0, Order(2000, 1, chain))
    b = engine.submit(0.5, Order(1000, 1))
    c = engine.submit(0.6, Order(2000, 1, chain))  # 3 blocks of it are cached: 464 tokens to read
    times = ends(engine)
    assert times[a] == pytest.approx((2.0, 2.0))
    assert times[b] == pytest.approx((3.0, 3.0))
    assert times[c] == pytest.approx((3.464, 3.464))


def test_a_step_gets_slower_with_the_batch():
    settings = Settings(step_seconds=0.01, step_seconds_per_request=0.005, prefill_tokens_per_second=1e9)
    alone, together = Engine(settings), Engine(settings)
    alone.submit(0.0, Order(1, 101))
    for _ in range(4):
        together.submit(0.0, Order(1, 101))
    assert ends(alone)[1][1] == pytest.approx(0.01 + 100 * 0.015)
    assert ends(together)[1][1] == pytest.approx(0.01 + 100 * 0.030)


def test_a_long_prompt_is_read_in_chunks_beside_the_tokens_of_others():
    settings = Settings(max_num_seqs=4, max_num_batched_tokens=100, step_seconds=1.0, step_seconds_per_request=0.0,
                        prefill_tokens_per_second=1e9)  # fmt: skip
    engine = Engine(settings)
    short = engine.submit(0.0, Order(10, 50))
    long = engine.submit(1.5, Order(400, 1))
    times = ends(engine)
    assert times[short] == pytest.approx((1.0, 50.0), abs=1e-3)
    # It joins at 2; 99 tokens a step beside the other's one: the 400th is read in the fifth step.
    assert times[long][0] == pytest.approx(7.0, abs=1e-3)


def test_a_prompt_of_exactly_two_blocks_hits_one_and_of_one_token_more_hits_both():
    for prompt, hit in ((31, 0), (32, 0), (33, 32), (63, 32), (64, 32), (65, 64), (96, 64)):
        engine = Engine(Settings(block_size=32))
        for at in (0.0, 10.0):
            engine.submit(at, Order(prompt, 1, range(prompt // 32)))
        engine.advance(20.0)
        assert engine.tally.prefix_hits == hit, prompt


def test_the_usage_counts_running_requests_only_and_the_cache_stays_full():
    engine = Engine(Settings(num_blocks=11, block_size=16, max_model_len=160))
    engine.submit(0.0, Order(160, 1, range(10)))
    engine.advance(0.001)
    assert engine.kv_usage == 1.0
    engine.advance(9.0)
    assert engine.kv_usage == 0.0
    assert engine.cache.idle == 10


def test_the_least_recently_used_prefix_leaves_first_and_its_end_before_its_beginning():
    engine = Engine(Settings(num_blocks=7, block_size=16, max_model_len=96))
    engine.submit(0.0, Order(48, 1, [1, 2, 3]))
    engine.advance(1.0)
    engine.submit(1.0, Order(48, 1, [4, 5, 6]))
    engine.advance(2.0)
    engine.submit(2.0, Order(32, 1, [7, 8]))
    engine.advance(3.0)
    assert engine.cache.match([1, 2, 3], 3) == 1
    assert engine.cache.match([4, 5, 6], 3) == 3


def test_without_a_free_block_the_youngest_request_is_preempted_and_later_computed_anew():
    engine = Engine(Settings(num_blocks=5, block_size=4, max_model_len=16, max_num_seqs=2))
    old = engine.submit(0.0, Order(6, 8, [1, 2, 3]))
    young = engine.submit(0.0, Order(6, 8, [4, 5, 6]))
    over: list[int] = []
    seen = set()
    while (at := engine.next_event_at()) is not None:
        over += [event.id for event in engine.advance(at) if isinstance(event, Finished)]
        seen.add((engine.running, engine.waiting, engine.tally.preemptions))
    assert (1, 1, 0) in seen  # it waits though the batch has room, and is not yet counted: as recorded
    assert over == [old, young]
    assert engine.tally.preemptions == 1
    assert engine.tally.request_preemptions.sum == 1
    assert engine.tally.success["length"] == 2


def test_a_third_adapter_waits_deferred_while_two_fill_the_slots():
    engine = Engine(Settings(max_loras=2, max_num_seqs=4))
    for name in ("a", "b", "c", "a"):
        engine.submit(0.0, Order(10, 50, lora=name))
    engine.advance(0.1)
    assert (engine.running, engine.waiting, engine.deferred) == (3, 1, 1)
    assert engine.slots.text == "a,b"
    engine.advance(9.0)
    assert engine.tally.success["length"] == 4


def test_a_request_that_could_never_run_is_refused_at_once():
    engine = Engine(Settings(num_blocks=5, block_size=4, max_model_len=16))
    with pytest.raises(DoesNotFit, match="needs 5 blocks, the server has 4"):
        engine.submit(0.0, Order(17, 1))
    with pytest.raises(DoesNotFit, match="at least one prompt token"):
        engine.submit(0.0, Order(0, 1))
    with pytest.raises(DoesNotFit, match="max_loras is 0"):
        engine.submit(0.0, Order(1, 1, lora="a"))
    assert engine.next_event_at() is None


def test_time_that_runs_backwards_is_refused():
    engine = Engine(Settings(), now=5.0)
    with pytest.raises(ValueError, match="time went back"):
        engine.advance(4.0)


def test_an_aborted_request_leaves_at_the_end_of_the_step_and_its_place_is_taken():
    engine = Engine(Settings(max_num_seqs=1, step_seconds=0.1, step_seconds_per_request=0.0))
    first = engine.submit(0.0, Order(1, 1000))
    second = engine.submit(0.0, Order(1, 2))
    third = engine.submit(0.0, Order(1, 2))
    engine.advance(1.0)
    assert engine.abort(1.05, first)
    assert engine.abort(1.05, third)
    assert not engine.abort(1.05, third)
    assert (engine.running, engine.waiting) == (1, 1)
    over = {event.id: event for event in engine.advance(9.0) if isinstance(event, Finished)}
    assert over[first].reason == over[third].reason == "abort"
    assert over[second].reason == "length"
    assert engine.tally.success["abort"] == 0  # vLLM does not count them (recorded)


def test_an_answer_is_remembered_so_that_the_next_turn_hits_it():
    engine = Engine(Settings(block_size=4, max_model_len=64, num_blocks=64))
    engine.submit(0.0, Order(8, 9, [1, 2, 3, 4]))
    engine.advance(1.0)
    engine.submit(1.0, Order(24, 1, [1, 2, 3, 4, 5, 6]))
    engine.advance(2.0)
    assert engine.tally.prefix_hits == 16
