"""The pure simulation of one vLLM-like engine: what happens to a request between its arrival and its last token.

Use:

    engine = EngineSimulation(EmulatorConfig(...), now=0.0)
    id = engine.submit(now, JobSpec(prompt_tokens=1200, output_tokens=80, hashes=hashes))   # QueueFull, DoesNotFit
    at = engine.next_event_at()                # None: nothing is left to do
    for event in engine.advance(at): ...       # FirstToken, TokenProgress (streams only), Finished, with exact times
    engine.abort(now, id)
    engine.running, engine.waiting, engine.deferred, engine.kv_usage, engine.counters
    agent.emulator.metrics.PageWriter(...).page(engine, now)      # the /metrics page

It has no clock: `now` is an argument and must not go backwards. The same calls with the same times give the same events
and the same page, however often `advance` is called in between. `advance(now)` settles the instant `now`: a request
submitted after it at the same instant joins the next step. For the first-come-first-served prefill of the routing
benches use `EmulatorConfig.prefill_only(...)` and `output_tokens=1`: a request then costs O(its blocks).

Theory. Work is done in steps, as in vLLM V1. At the start of a step each running request gets one token (and a new
block where its blocks are full), unfinished prompts share what is left of the step's token budget, and then waiting
requests are admitted first come, first served, while the batch, the budget and the KV cache have room for the whole
prompt. When a running request needs a block and none is free, the request admitted last is preempted: it loses its
blocks, moves to the head of the queue and is recomputed later. A request whose adapter has no slot is deferred: it is
tried again first at every step. All tokens of a step come out at its end.

Between two changes of the batch all steps are equal, so they are not simulated one by one. The engine finds the next
boundary at which something changes (a heap of "this request ends" and "this request fills its block"), moves there, and
counts the steps in between in one addition. A request costs a few heap operations and its blocks, whatever the length
of its answer, unless it streams. Unlike in vLLM, a prompt takes all its blocks at admission, and unused blocks are
taken before idle ones are evicted.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from agent.emulator.adapters import AdapterSlots
from agent.emulator.cache import BlockCache
from agent.emulator.config import EmulatorConfig
from agent.emulator.counters import EngineCounters
from agent.emulator.jobs import Finished, FirstToken, GenerationJob, JobEvent, JobSpec, QueueFull, TokenProgress


class EqualSteps:
    """Steps of `seconds` each, the first from boundary `first` at time `at`, all alike until boundary `until`.

    Step `b` lasts from boundary `b` to boundary `b + 1`. The time of a boundary is always computed from the first one
    and never by repeated addition, so it is the same float however often it was computed in between.
    """

    __slots__ = ("at", "first", "seconds", "until")

    def __init__(self, at: float) -> None:
        self.first = 0
        self.at = at
        self.seconds = 0.0
        self.until = 0

    def time(self, boundary: int) -> float:
        """When `boundary` is reached."""
        return self.at + (boundary - self.first) * self.seconds

    def reached(self, now: float) -> int:
        """The last boundary at or before `now`, at most `until`."""
        if self.seconds <= 0.0:
            return self.until
        boundary = min(self.until, self.first + int((now - self.at) / self.seconds))
        while boundary < self.until and self.time(boundary + 1) <= now:
            boundary += 1
        while boundary > self.first and self.time(boundary) > now:
            boundary -= 1
        return boundary

    def stop_at(self, now: float) -> None:
        """End the steps at the first boundary after `first` that is not before `now`, unless they end earlier."""
        boundary = self.first + 1
        if self.seconds > 0.0:
            boundary = max(boundary, self.first + math.ceil((now - self.at) / self.seconds))
            while boundary > self.first + 1 and self.time(boundary - 1) >= now:
                boundary -= 1
            while self.time(boundary) < now:
                boundary += 1
        self.until = min(self.until, boundary)

    def restart(self, boundary: int, at: float) -> None:
        """Begin again at `boundary`, which is reached at `at`."""
        self.first = boundary
        self.at = at


class EngineSimulation:
    """The scheduler, cache and counters of one server; the module docstring shows how to use it."""

    def __init__(self, config: EmulatorConfig, now: float = 0.0) -> None:
        self.config = config
        self.ready_at = now + config.startup_seconds
        self.counters = EngineCounters(config.max_model_len)
        self.cache = BlockCache(config.capacity, self.counters.record_block_age if config.kv_cache_metrics else None)
        self.adapters = AdapterSlots(config, self.ready_at)
        self._now = now
        self._last_id = 0
        self._jobs: dict[int, GenerationJob] = {}
        self._running: dict[int, GenerationJob] = {}  # in order of admission
        self._waiting: deque[GenerationJob] = deque()
        self._deferred: deque[GenerationJob] = deque()
        self._prefilling: list[GenerationJob] = []
        self._chunks: list[tuple[GenerationJob, int]] = []
        self._aborted_running: list[GenerationJob] = []
        self._need_block: list[GenerationJob] = []
        self._due: list[tuple[int, int, int, GenerationJob]] = []  # (boundary, id, version, job)
        self._streams: dict[int, GenerationJob] = {}
        self._events: list[JobEvent] = []
        # True: `_steps` are running. False: their first boundary is reached and the next step is not scheduled yet.
        self._steps = EqualSteps(self.ready_at)
        self._scheduled = False
        self._decoding = 0
        self._admissions = 0
        self.sleep_level = 0  # 0: awake
        self._cache_lost = False  # at the end of the step in progress

    @property
    def running(self) -> int:
        """Requests in the batch."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Requests accepted and not in the batch, the deferred ones included."""
        return len(self._waiting) + len(self._deferred)

    @property
    def deferred(self) -> int:
        """Requests that wait for an adapter slot."""
        return len(self._deferred)

    @property
    def kv_usage(self) -> float:
        """Ratio of the usable blocks that running requests hold, 0 to 1."""
        return self.cache.used / self.cache.capacity

    def uncounted_steps(self) -> tuple[int, int, float]:
        """(steps, tokens in each, seconds of each) that ended by the last `now` and are not in the counters yet."""
        if not self._scheduled or not self._decoding or self._chunks:
            return 0, 0, 0.0
        return self._steps.reached(self._now) - self._steps.first, self._decoding, self._steps.seconds

    def last_step_at(self) -> float:
        """When the last step ended (or the server became ready)."""
        return self._steps.time(self._steps.reached(self._now)) if self._scheduled else self._steps.at

    def submit(self, now: float, spec: JobSpec) -> int:
        """Accept a request; its id. QueueFull (counted) or DoesNotFit if it is refused."""
        spec.check(self.config)
        self._run(now, inclusive=False)
        if self.waiting >= (self.config.max_num_queued_reqs or math.inf):
            self.counters.rejections += 1
            raise QueueFull(f"{self.waiting} requests wait already, which is max_num_queued_reqs")
        self._last_id += 1
        job = GenerationJob(self._last_id, spec, now)
        self._jobs[job.id] = job
        if self._scheduled:
            if not self._waiting and len(self._running) < self.config.max_num_seqs:
                self._steps.stop_at(now)
        elif self._steps.at < now and not self._running and not self.waiting:
            self._steps.at = now
        self._waiting.append(job)
        return job.id

    def abort(self, now: float, id: int) -> bool:
        """Abort a request: at once if it waits, at the end of the step if it runs. False if it has ended already."""
        self._run(now, inclusive=False)
        job = self._jobs.get(id)
        if job is None or job.aborted:
            return False
        job.aborted = True
        if id in self._running:
            self._aborted_running.append(job)
            if self._scheduled:
                self._steps.stop_at(now)
        else:
            queue = self._deferred if job in self._deferred else self._waiting
            head = queue[0] is job
            queue.remove(job)
            if head and self._scheduled and self._waiting:
                self._steps.stop_at(now)
            self._drop(job, now)
        return True

    def sleep(self, now: float, level: int) -> None:
        """Sleep: requests are aborted, the KV cache is lost at the end of the step, and later requests wait."""
        self._run(now, inclusive=False)
        for job in list(self._jobs.values()):
            self.abort(now, job.id)
        if not self._scheduled:
            self._drop_aborted()
        self.cache.drop_idle()
        self._cache_lost = self._scheduled
        self.sleep_level = level

    def wake(self, now: float) -> None:
        """Wake up, with an empty cache; requests that waited are served."""
        self._run(now, inclusive=False)
        self.sleep_level = 0
        if not self._scheduled:
            self._steps.at = max(self._steps.at, now)

    def advance(self, now: float) -> list[JobEvent]:
        """The events up to and including `now`, each once. Times are exact; the events of one request are in order."""
        self._run(now, inclusive=True)
        if self._streams:
            boundary = self._steps.reached(now) if self._scheduled else self._steps.first
            at = self._steps.time(boundary)
            for job in self._streams.values():
                count = job.generated_at(boundary)
                if count > job.reported:
                    job.reported = count
                    self._events.append(TokenProgress(job.id, at, count))
        events, self._events = self._events, []
        return events

    def next_event_at(self) -> float | None:
        """The next time at which `advance` has something to do; None if that takes a new request."""
        steps = self._steps
        if self._events:
            return self._now
        if not self._scheduled:
            return steps.at if (self._running or self._waiting or self._deferred) and not self.sleep_level else None
        return steps.time(min(steps.reached(self._now) + 1, steps.until) if self._streams else steps.until)

    def settle(self, now: float) -> None:
        """Bring the state to `now`; the events stay for the next `advance`."""
        self._run(now, inclusive=True)

    def _run(self, now: float, *, inclusive: bool) -> None:
        if now < self._now:
            raise ValueError(f"time went back from {self._now} to {now}")
        self._now = now
        while True:
            if self._scheduled:
                at = self._steps.time(self._steps.until)
                if at > now or (at == now and not inclusive):
                    return
                self._end_steps(at)
                continue
            at = self._steps.at
            if self.sleep_level or not (self._running or self._waiting or self._deferred):
                return
            if at > now or (at == now and not inclusive):
                return
            self._schedule_step()

    def _schedule_step(self) -> None:
        """Schedule the step that starts at the boundary reached, and find how many equal steps follow it."""
        config, steps = self.config, self._steps
        self._drop_aborted()
        preempted = self._add_blocks()
        budget = config.max_num_batched_tokens - (len(self._running) - len(self._prefilling))
        chunks = self._chunks = []
        for job in self._prefilling:
            chunk = min(job.target - job.computed, budget)
            if chunk > 0:
                budget -= chunk
                self._prefill_chunk(job, chunk)
        if not preempted:
            self._admit(budget)
        decoding = self._decoding = len(self._running) - len(self._prefilling)
        if not self._running:
            return
        steps.seconds = config.step_seconds + config.step_seconds_per_request * decoding
        if chunks:
            steps.seconds += sum(chunk for _, chunk in chunks) / config.prefill_tokens_per_second
        if config.max_loras:
            steps.seconds += self.adapters.load(job.spec.lora for job in self._running.values())
        self._scheduled = True
        if chunks:
            steps.until = steps.first + 1
            return
        due = self._due
        while due[0][2] != due[0][3].version:
            heapq.heappop(due)
        steps.until = due[0][0]

    def _add_blocks(self) -> bool:
        """Give a block to each request that needs one for this step; True if a request was preempted for it."""
        preempted = False
        self._need_block.sort(key=lambda job: job.admission)
        for job in self._need_block:
            while job.id in self._running:
                if self.cache.allocate(1, self._steps.at):
                    job.unhashed += 1
                    job.blocks += 1
                    self._push_due(job)
                    break
                preempted = True
                self._preempt(next(reversed(self._running.values())))
        self._need_block.clear()
        return preempted

    def _admit(self, budget: int) -> None:
        """Move requests from the queues into the batch while they fit."""
        config, running = self.config, self._running
        no_slot: list[GenerationJob] = []
        adapters = {job.spec.lora for job in running.values() if job.spec.lora} if config.max_loras else set()
        while budget > 0 and len(running) < config.max_num_seqs:
            queue = self._deferred or self._waiting
            if not queue:
                break
            job = queue[0]
            lora = job.spec.lora
            if lora and lora not in adapters and len(adapters) >= config.max_loras:
                no_slot.append(queue.popleft())
                continue
            if not self._allocate(job):
                break
            queue.popleft()
            if lora:
                adapters.add(lora)
            self._admissions += 1
            job.admission = self._admissions
            running[job.id] = job
            self._prefilling.append(job)
            chunk = min(job.target - job.computed, budget)
            budget -= chunk
            self._prefill_chunk(job, chunk)
        self._deferred.extendleft(reversed(no_slot))

    def _allocate(self, job: GenerationJob) -> bool:
        """Hold the blocks of all tokens that the job must compute, cached and new; False if they do not fit."""
        size = self.config.block_size
        hashes = job.spec.hashes
        # The last token is always computed: its output is the next token. vLLM does the same (recorded: a prompt of
        # exactly two blocks hits one).
        matched = self.cache.match(hashes, (job.target - 1) // size)
        blocks = -(-job.target // size)
        if not self.cache.admit(hashes, matched, blocks - matched, self._steps.at):
            return False
        job.held = list(hashes[:matched])
        job.unhashed = blocks - matched
        job.blocks = blocks
        job.hashed_to = matched
        job.computed = matched * size
        if job.scheduled_at < 0:
            job.scheduled_at = self._steps.at
            job.cached = matched * size
            self.counters.count_scheduled(job)
        return True

    def _prefill_chunk(self, job: GenerationJob, chunk: int) -> None:
        """Compute `chunk` more prompt tokens in this step; the next request can hit the blocks they fill."""
        self._chunks.append((job, chunk))
        self._add_hashes(job, job.computed + chunk)

    def _add_hashes(self, job: GenerationJob, computed: int) -> None:
        """Give the blocks that `computed` tokens fill their hashes."""
        hashes, full = job.spec.hashes, computed // self.config.block_size
        for index in range(job.hashed_to, min(full, len(hashes))):
            if self.cache.add_hash(hashes[index], self._steps.at):
                job.held.append(hashes[index])
                job.unhashed -= 1
        job.hashed_to = max(job.hashed_to, full)

    def _end_steps(self, at: float) -> None:
        """End the equal steps: count them, emit their tokens, release finished requests."""
        steps, boundary = self._steps, self._steps.until
        prefill_tokens = sum(chunk for _, chunk in self._chunks)
        self.counters.count_steps(boundary - steps.first, self._decoding, prefill_tokens, steps.seconds)
        before = steps.time(boundary - 1)
        steps.restart(boundary, at)
        self._scheduled = False
        for job, chunk in self._chunks:
            job.computed += chunk
            if job.computed >= job.target:
                self._prefilling.remove(job)
                self._first_token(job)
        self._chunks = []
        due = self._due
        while due and due[0][0] <= boundary:
            _, _, version, job = heapq.heappop(due)
            if version != job.version:
                continue
            if job.generated_at(boundary) >= job.spec.output_tokens:
                self._finish(job)
            else:
                self._add_hashes(job, job.blocks * self.config.block_size)
                self._need_block.append(job)
        self._drop_aborted()
        if self._cache_lost:
            self._cache_lost = False
            self.cache.drop_idle()
        if self.config.max_loras:
            self.adapters.end_steps(before, at, running=bool(self._running))

    def _drop_aborted(self) -> None:
        """Release the requests that were aborted while they ran."""
        for job in self._aborted_running:
            if job.id in self._running:
                self._release(job)
                self._drop(job, self._steps.at)
        self._aborted_running.clear()

    def _first_token(self, job: GenerationJob) -> None:
        """Record that the prompt is computed at the boundary reached, which generates one token."""
        counters, at, spec = self.counters, self._steps.at, job.spec
        job.generated += 1
        job.decode_from = self._steps.first
        job.decoding = True
        counters.generation_tokens += 1
        # vLLM reports a preemption with the request's next output (recorded).
        counters.preemptions += job.uncounted_preemptions
        job.uncounted_preemptions = 0
        if job.first_at < 0:
            job.first_at = at
            counters.count_first_token(job, at)
            if not job.aborted:
                self._events.append(FirstToken(job.id, at, job.cached))
            job.reported = 1
        else:
            counters.inter_token.add(at - job.last_at)
        if job.generated >= spec.output_tokens:
            self._finish(job)
        else:
            if spec.stream and not job.aborted:
                self._streams[job.id] = job
            self._push_due(job)

    def _push_due(self, job: GenerationJob) -> None:
        """Push the boundary at which the job ends or needs another block, whichever comes first."""
        end = job.decode_from + job.spec.output_tokens - job.generated
        full = job.decode_from + job.blocks * self.config.block_size - job.spec.prompt_tokens - job.generated + 1
        job.version += 1
        heapq.heappush(self._due, (min(end, max(full, job.decode_from)), job.id, job.version, job))

    def _preempt(self, job: GenerationJob) -> None:
        """Preempt the job: it loses its blocks and moves to the head of the queue."""
        generated = job.generated_at(self._steps.first)
        self._release(job)
        job.generated, job.decoding, job.computed = generated, False, 0
        job.target = job.spec.prompt_tokens + generated
        job.last_at = self._steps.at
        job.preemptions += 1
        job.uncounted_preemptions += 1
        self._waiting.appendleft(job)

    def _release(self, job: GenerationJob) -> None:
        """Take the job out of the batch; its full blocks stay in the cache."""
        self._add_hashes(
            job, job.computed if not job.decoding else job.spec.prompt_tokens + job.generated_at(self._steps.first) - 1
        )
        self.cache.release(job.held, job.unhashed, self._steps.at)
        job.held = []
        job.unhashed = job.blocks = 0
        job.version += 1
        del self._running[job.id]
        self._streams.pop(job.id, None)
        if not job.decoding:
            self._prefilling = [other for other in self._prefilling if other is not job]

    def _finish(self, job: GenerationJob) -> None:
        """Count the request, whose last token is out, and release it."""
        self._release(job)
        del self._jobs[job.id]
        self.counters.count_finished(job, self._steps.at)
        self._events.append(Finished(job.id, self._steps.at, job.spec.output_tokens, job.spec.finish_reason))

    def _drop(self, job: GenerationJob, at: float) -> None:
        """Forget an aborted request. vLLM does not count it (recorded); `counters.aborted` serves the tests."""
        del self._jobs[job.id]
        self.counters.aborted += 1
        self._events.append(Finished(job.id, at, job.generated_at(self._steps.first), "abort"))
