"""The pure engine of one vLLM-like model server: what happens to requests between arrival and last token.

Use:

    engine = Engine(Settings(...), now=0.0)
    id = engine.submit(now, Order(prompt_tokens=1200, output_tokens=80, hashes=hashes))   # QueueFull, DoesNotFit
    at = engine.next_event_at()                # None: nothing to do; else ask again at that time
    for event in engine.advance(at): ...       # FirstToken, Tokens (streams only), Finished, with exact times
    engine.abort(now, id)
    engine.running, engine.waiting, engine.deferred, engine.kv_usage, engine.tally
    agent.emulator.metrics.PageWriter(...).page(engine, now)      # the /metrics page

It has no clock: `now` is an argument and must not go backwards. The same calls at the same `now` give the same events
and the same page, and how often `advance` is called in between changes nothing. `advance(now)` settles the instant
`now`: a request submitted at the same instant after it joins the next step. For the first-come-first-served prefill of
the routing benches take `Settings.prefill_only(...)` and `output_tokens=1`: a request then costs O(its blocks).

Theory. Work is done in steps, as in vLLM V1. At the start of a step the running requests get one token each (a block
more where theirs are full), unfinished prompts get what is left of the step's token budget, and then waiting requests
are admitted, first come first served, while there is a place in the batch, budget, and room for the whole prompt. When
a running request needs a block and none is free, the last admitted request is preempted: it loses its blocks, goes to
the head of the queue and is later computed anew. A request whose adapter has no slot is put aside ("deferred") and
tried again first at every step. All tokens of a step come out at its end.

Between two changes of the batch every step is like the one before, so they are not simulated one by one: the engine
knows the next boundary at which something changes (a heap over "this request is done" and "this request fills its
block"), leaps there, and counts the steps in between in one addition. The cost of a request is a few heap operations
and its blocks, whatever its answer's length, unless it streams.
Unlike vLLM, a prompt takes all its blocks at admission, and empty blocks are used before idle ones leave.
"""

from __future__ import annotations

import heapq
import math
from collections import deque

from agent.emulator.cache import BlockCache
from agent.emulator.orders import Event, Finished, FirstToken, Job, Order, QueueFull, Tokens
from agent.emulator.settings import Settings
from agent.emulator.slots import Slots
from agent.emulator.span import Span
from agent.emulator.tally import Tally


class Engine:
    """One server's scheduler, cache and counters; see the module's text for how to drive it."""

    def __init__(self, settings: Settings, now: float = 0.0) -> None:
        self.settings = settings
        self.ready_at = now + settings.startup_seconds
        self.tally = Tally(settings.max_model_len)
        self.cache = BlockCache(settings.capacity, self.tally.block_life if settings.kv_cache_metrics else None)
        self.slots = Slots(settings, self.ready_at)
        self._now = now
        self._ids = 0
        self._jobs: dict[int, Job] = {}
        self._running: dict[int, Job] = {}  # in order of admission
        self._waiting: deque[Job] = deque()
        self._deferred: deque[Job] = deque()
        self._prefilling: list[Job] = []
        self._chunks: list[tuple[Job, int]] = []
        self._leaving: list[Job] = []
        self._crossing: list[Job] = []
        self._due: list[tuple[int, int, int, Job]] = []  # (boundary, id, version, job)
        self._streams: dict[int, Job] = {}
        self._events: list[Event] = []
        # Formed: the steps of `_span` are being run. Not formed: its first boundary is reached, the step to be made up.
        self._span = Span(self.ready_at)
        self._formed = False
        self._decoding = 0
        self._places = 0

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
        """Part of the usable blocks held by running requests, 0 to 1."""
        return self.cache.used / self.cache.capacity

    def open_run(self) -> tuple[int, int, float]:
        """(steps done and not yet in the tally, tokens in each, seconds of each) as of the last `now`."""
        if not self._formed or not self._decoding or self._chunks:
            return 0, 0, 0.0
        return self._span.by(self._now) - self._span.first, self._decoding, self._span.seconds

    def last_step_at(self) -> float:
        """When the last step ended (or the server became ready)."""
        return self._span.time(self._span.by(self._now)) if self._formed else self._span.at

    def submit(self, now: float, order: Order) -> int:
        """Take a request in and return its id; QueueFull or DoesNotFit if it is refused (the first is counted)."""
        order.check(self.settings)
        self._run(now, inclusive=False)
        if self.waiting >= (self.settings.max_num_queued_reqs or math.inf):
            self.tally.rejections += 1
            raise QueueFull(f"{self.waiting} requests wait already, which is max_num_queued_reqs")
        self._ids += 1
        job = Job(self._ids, order, now)
        self._jobs[job.id] = job
        if self._formed:
            if not self._waiting and len(self._running) < self.settings.max_num_seqs:
                self._span.stop_at(now)
        elif self._span.at < now and not self._running and not self.waiting:
            self._span.at = now
        self._waiting.append(job)
        return job.id

    def abort(self, now: float, id: int) -> bool:
        """Drop a request: at once if it waits, at the end of the step if it runs. False if it is over already."""
        self._run(now, inclusive=False)
        job = self._jobs.get(id)
        if job is None or job.aborted:
            return False
        job.aborted = True
        if id in self._running:
            self._leaving.append(job)
            if self._formed:
                self._span.stop_at(now)
        else:
            queue = self._deferred if job in self._deferred else self._waiting
            head = queue[0] is job
            queue.remove(job)
            if head and self._formed and self._waiting:
                self._span.stop_at(now)
            self._forget(job, now)
        return True

    def advance(self, now: float) -> list[Event]:
        """Everything that happened up to and including `now`, once. Times are exact; order is by time per request."""
        self._run(now, inclusive=True)
        if self._streams:
            boundary = self._span.by(now) if self._formed else self._span.first
            at = self._span.time(boundary)
            for job in self._streams.values():
                count = job.made_by(boundary)
                if count > job.told:
                    job.told = count
                    self._events.append(Tokens(job.id, at, count))
        events, self._events = self._events, []
        return events

    def next_event_at(self) -> float | None:
        """The next time at which `advance` has something to do; None if nothing ever happens without a new request."""
        span = self._span
        if self._events:
            return self._now
        if not self._formed:
            return span.at if self._running or self._waiting or self._deferred else None
        return span.time(min(span.by(self._now) + 1, span.until) if self._streams else span.until)

    def settle(self, now: float) -> None:
        """Bring the state to `now` and keep the events for the next `advance`."""
        self._run(now, inclusive=True)

    def _run(self, now: float, *, inclusive: bool) -> None:
        if now < self._now:
            raise ValueError(f"time went back from {self._now} to {now}")
        self._now = now
        while True:
            if self._formed:
                at = self._span.time(self._span.until)
                if at > now or (at == now and not inclusive):
                    return
                self._close(at)
                continue
            at = self._span.at
            if not (self._running or self._waiting or self._deferred) or at > now or (at == now and not inclusive):
                return
            self._form()

    def _form(self) -> None:
        """Make up the step that starts at the boundary reached, and find out until when the next ones are like it."""
        settings, span = self.settings, self._span
        self._drop_leaving()
        preempted = self._grow()
        budget = settings.max_num_batched_tokens - (len(self._running) - len(self._prefilling))
        chunks = self._chunks = []
        for job in self._prefilling:
            chunk = min(job.target - job.computed, budget)
            if chunk > 0:
                budget -= chunk
                self._chunk(job, chunk)
        if not preempted:
            self._admit(budget)
        decoding = self._decoding = len(self._running) - len(self._prefilling)
        if not self._running:
            return
        span.seconds = settings.step_seconds + settings.step_seconds_per_request * decoding
        if chunks:
            span.seconds += sum(chunk for _, chunk in chunks) / settings.prefill_tokens_per_second
        if settings.max_loras:
            span.seconds += self.slots.load(job.order.lora for job in self._running.values())
        self._formed = True
        if chunks:
            span.until = span.first + 1
            return
        due = self._due
        while due[0][2] != due[0][3].version:
            heapq.heappop(due)
        span.until = due[0][0]

    def _grow(self) -> bool:
        """Give a block to each request that needs one for this step; True if somebody was preempted for it."""
        preempted = False
        self._crossing.sort(key=lambda job: job.place)
        for job in self._crossing:
            while job.id in self._running:
                if self.cache.take(1, self._span.at):
                    job.unnamed += 1
                    job.blocks += 1
                    self._schedule(job)
                    break
                preempted = True
                self._preempt(next(reversed(self._running.values())))
        self._crossing.clear()
        return preempted

    def _admit(self, budget: int) -> None:
        """Move requests from the queues into the batch while they fit."""
        settings, running = self.settings, self._running
        aside: list[Job] = []
        adapters = {job.order.lora for job in running.values() if job.order.lora} if settings.max_loras else set()
        while budget > 0 and len(running) < settings.max_num_seqs:
            queue = self._deferred or self._waiting
            if not queue:
                break
            job = queue[0]
            lora = job.order.lora
            if lora and lora not in adapters and len(adapters) >= settings.max_loras:
                aside.append(queue.popleft())
                continue
            if not self._seat(job):
                break
            queue.popleft()
            if lora:
                adapters.add(lora)
            self._places += 1
            job.place = self._places
            running[job.id] = job
            self._prefilling.append(job)
            chunk = min(job.target - job.computed, budget)
            budget -= chunk
            self._chunk(job, chunk)
        self._deferred.extendleft(reversed(aside))

    def _seat(self, job: Job) -> bool:
        """Hold the blocks of all that the job has to read, cached ones and new ones; False if they do not fit."""
        size = self.settings.block_size
        hashes = job.order.hashes
        # The last token is always computed: its output is the next token. vLLM does the same (recorded: a prompt of
        # exactly two blocks hits one).
        matched = self.cache.match(hashes, (job.target - 1) // size)
        blocks = -(-job.target // size)
        if not self.cache.admit(hashes, matched, blocks - matched, self._span.at):
            return False
        job.held = list(hashes[:matched])
        job.unnamed = blocks - matched
        job.blocks = blocks
        job.named_to = matched
        job.computed = matched * size
        if job.scheduled_at < 0:
            job.scheduled_at = self._span.at
            job.cached = matched * size
            self.tally.scheduled(job)
        return True

    def _chunk(self, job: Job, chunk: int) -> None:
        """Read `chunk` more tokens in this step; the blocks they fill can be hit by the next request at once."""
        self._chunks.append((job, chunk))
        self._name(job, job.computed + chunk)

    def _name(self, job: Job, computed: int) -> None:
        """Name the blocks that `computed` tokens fill."""
        hashes, full = job.order.hashes, computed // self.settings.block_size
        for index in range(job.named_to, min(full, len(hashes))):
            if self.cache.name(hashes[index], self._span.at):
                job.held.append(hashes[index])
                job.unnamed -= 1
        job.named_to = max(job.named_to, full)

    def _close(self, at: float) -> None:
        """End the run of steps: count it, hand out its tokens, let go of what is done."""
        span, boundary = self._span, self._span.until
        prefill_tokens = sum(chunk for _, chunk in self._chunks)
        self.tally.steps(boundary - span.first, self._decoding, prefill_tokens, span.seconds)
        before = span.time(boundary - 1)
        span.restart(boundary, at)
        self._formed = False
        for job, chunk in self._chunks:
            job.computed += chunk
            if job.computed >= job.target:
                self._prefilling.remove(job)
                self._first(job)
        self._chunks = []
        due = self._due
        while due and due[0][0] <= boundary:
            _, _, version, job = heapq.heappop(due)
            if version != job.version:
                continue
            if job.made_by(boundary) >= job.order.output_tokens:
                self._finish(job)
            else:
                self._name(job, job.blocks * self.settings.block_size)
                self._crossing.append(job)
        self._drop_leaving()
        if self.settings.max_loras:
            self.slots.stepped(before, at, running=bool(self._running))

    def _drop_leaving(self) -> None:
        """Let go of the requests that were aborted while they ran."""
        for job in self._leaving:
            if job.id in self._running:
                self._leave(job)
                self._forget(job, self._span.at)
        self._leaving.clear()

    def _first(self, job: Job) -> None:
        """A prompt was read to its end at the boundary reached: one token is out."""
        tally, at, order = self.tally, self._span.at, job.order
        job.made += 1
        job.joined = self._span.first
        job.decoding = True
        tally.generation_tokens += 1
        # A preemption shows only when the request speaks again: vLLM sends it with the next output (recorded).
        tally.preemptions += job.unseen
        job.unseen = 0
        if job.first_at < 0:
            job.first_at = at
            tally.first(job, at)
            if not job.aborted:
                self._events.append(FirstToken(job.id, at, job.cached))
            job.told = 1
        else:
            tally.inter_token.add(at - job.last_at)
        if job.made >= order.output_tokens:
            self._finish(job)
        else:
            if order.stream and not job.aborted:
                self._streams[job.id] = job
            self._schedule(job)

    def _schedule(self, job: Job) -> None:
        """Put the job's next boundary of interest on the heap: its end, or the step that needs a block more."""
        end = job.joined + job.order.output_tokens - job.made
        full = job.joined + job.blocks * self.settings.block_size - job.order.prompt_tokens - job.made + 1
        job.version += 1
        heapq.heappush(self._due, (min(end, max(full, job.joined)), job.id, job.version, job))

    def _preempt(self, job: Job) -> None:
        """Take the job's place and blocks away; it goes to the head of the queue and starts over."""
        made = job.made_by(self._span.first)
        self._leave(job)
        job.made, job.decoding, job.computed = made, False, 0
        job.target = job.order.prompt_tokens + made
        job.last_at = self._span.at
        job.preempted += 1
        job.unseen += 1
        self._waiting.appendleft(job)

    def _leave(self, job: Job) -> None:
        """Take the job out of the batch; what it computed stays in the cache as idle blocks."""
        self._name(
            job, job.computed if not job.decoding else job.order.prompt_tokens + job.made_by(self._span.first) - 1
        )
        self.cache.release(job.held, job.unnamed, self._span.at)
        job.held = []
        job.unnamed = job.blocks = 0
        job.version += 1
        del self._running[job.id]
        self._streams.pop(job.id, None)
        if not job.decoding:
            self._prefilling = [other for other in self._prefilling if other is not job]

    def _finish(self, job: Job) -> None:
        """The last token is out: count the request and let it go."""
        self._leave(job)
        del self._jobs[job.id]
        self.tally.finished(job, self._span.at)
        self._events.append(Finished(job.id, self._span.at, job.order.output_tokens, job.order.ends))

    def _forget(self, job: Job, at: float) -> None:
        """An aborted request is gone. vLLM counts it nowhere (recorded); the tally does, for the emulator's tests."""
        del self._jobs[job.id]
        self.tally.aborted += 1
        self._events.append(Finished(job.id, at, job.made_by(self._span.first), "abort"))
