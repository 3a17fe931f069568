"""Running one completion: submit its jobs to the engine and write the answer, whole or as a stream of events."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from agent.emulator import answers
from agent.emulator.answers import ChunkWriter, FinishedAnswer, Usage
from agent.emulator.bad_pages import cut_off
from agent.emulator.config import EmulatorConfig, ModelSpec
from agent.emulator.driver import EngineDriver, EngineStopped, Waiter
from agent.emulator.interfaces import MESSAGES, AnswerFacts, Interface, MessageEvents, ResponseEvents
from agent.emulator.jobs import DoesNotFit, Finished, FirstToken, JobSpec, QueueFull
from agent.emulator.requests import CompletionRequest, RequestError
from agent.emulator.text import TextGenerator, block_hashes, tokenize


@dataclass(frozen=True, slots=True)
class ServerContext:
    """What the requests of one server share."""

    driver: EngineDriver
    generator: TextGenerator
    config: EmulatorConfig
    model: ModelSpec


@dataclass(frozen=True, slots=True)
class AcceptedRequest:
    """A valid request and what its answer carries; a fault ends its stream after `cut_after` tokens.

    `interface` is None for completions and chats.
    """

    completion: CompletionRequest
    id: str
    created: int
    headers: Mapping[str, str]
    lora: str
    cut_after: int | None
    cut_with_error: bool
    interface: Interface | None = None

    @property
    def facts(self) -> AnswerFacts:
        """What answers of other interfaces carry."""
        return AnswerFacts(self.id, self.created, self.completion.model)


class _AnswerProgress:
    """One answer of a request while it is written: `sent` of `generated` tokens are sent."""

    __slots__ = ("generated", "reason", "sent", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.generated = 0
        self.sent = 0
        self.reason: str | None = None


def _jobs(request: AcceptedRequest, context: ServerContext) -> tuple[list[JobSpec], list[_AnswerProgress]]:
    """One job for each answer, prompt by prompt, with the block hashes of prompt and answer."""
    completion, config, generator = request.completion, context.config, context.generator
    specs, answers_so_far = [], []
    for prompt in completion.prompts:
        space = config.max_model_len - len(prompt)
        limit = min(space, completion.max_tokens if completion.max_tokens is not None else space)
        tokens = limit if completion.ignore_eos else min(limit, context.model.answer_tokens)
        for choice in range(completion.n):
            start = generator.start(prompt, choice)
            whole = array("I", prompt)
            whole.extend(tokenize(generator.text(start, 0, tokens)))
            specs.append(
                JobSpec(
                    prompt_tokens=len(prompt),
                    output_tokens=tokens,
                    hashes=block_hashes(whole, config.block_size, request.lora, completion.cache_salt),
                    lora=request.lora,
                    stream=completion.stream,
                    finish_reason="length" if tokens == limit else "stop",
                    max_tokens=limit,
                    choices=0 if choice else completion.n,
                )
            )
            answers_so_far.append(_AnswerProgress(start))
    return specs, answers_so_far


def _submit(driver: EngineDriver, specs: list[JobSpec]) -> Waiter:
    try:
        return driver.submit(specs)
    except QueueFull as full:
        raise RequestError(503, answers.BUSY, "Service Unavailable") from full
    except DoesNotFit as large:
        raise RequestError(400, str(large), "BadRequestError") from large


def _usage(request: AcceptedRequest, context: ServerContext, generated: int, cached: int) -> Usage:
    prompts = request.completion.prompts
    prompt = sum(len(tokens) for tokens in prompts)
    size = context.config.block_size
    blocks = sum(len(tokens) // size * size for tokens in prompts)
    return Usage(prompt, generated, cached, max(0, blocks - cached) if request.completion.chat else None)


async def answer_whole(
    http_request: web.BaseRequest, request: AcceptedRequest, context: ServerContext
) -> web.StreamResponse:
    """Answer once all tokens are generated; a client that disconnects aborts the request.

    RequestError if the queue is full, the request does not fit, or the server stops.
    """
    completion, driver, generator = request.completion, context.driver, context.generator
    specs, answers_so_far = _jobs(request, context)
    waiter = _submit(driver, specs)
    unfinished = {job_id: index for index, job_id in enumerate(waiter.ids)}
    cached = 0
    try:
        while unfinished:
            for event in await waiter.take():
                if isinstance(event, FirstToken):
                    cached += event.cached_tokens if unfinished[event.id] % completion.n == 0 else 0
                elif isinstance(event, Finished):
                    answers_so_far[unfinished.pop(event.id)].reason = event.reason
    except EngineStopped:
        raise RequestError(500, answers.ENGINE_FAILED, "InternalServerError") from None
    finally:
        driver.remove(waiter)
    finished = []
    for index, (spec, answer) in enumerate(zip(specs, answers_so_far, strict=True)):
        text = generator.text(answer.start, 0, spec.output_tokens)
        prompt = completion.prompts[index // completion.n]
        ids = (prompt.tolist(), tokenize(text).tolist()) if completion.return_token_ids else (None, None)
        finished.append(FinishedAnswer(text, answer.reason or "length", *ids))
    usage = _usage(request, context, sum(spec.output_tokens for spec in specs), cached)
    write = answers.chat if completion.chat else answers.completion
    headers = dict(request.headers)
    report_format = http_request.headers.get("endpoint-load-metrics-format")
    if report_format:
        report = answers.load_report(report_format, driver.engine.waiting, driver.engine.kv_usage)
        if report is not None:
            headers["endpoint-load-metrics"] = report
    if request.interface is not None:
        body = request.interface.write(request.facts, finished[0], usage)
    else:
        body = write(request.id, request.created, completion.model, finished, usage)
    return web.Response(body=body, content_type="application/json", headers=headers)


async def answer_stream(
    http_request: web.BaseRequest, request: AcceptedRequest, context: ServerContext
) -> web.StreamResponse:
    """Answer with server-sent events as tokens are generated; a client that disconnects aborts the request."""
    driver = context.driver
    specs, answers_so_far = _jobs(request, context)
    waiter = _submit(driver, specs)
    response = web.StreamResponse(headers=request.headers)
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    try:
        await response.prepare(http_request)
        # The headers are sent when the stream is accepted, not with the first token (recorded).
        await response.write(b"")
        complete = await _write_events(response, request, context, waiter, specs, answers_so_far)
        if not complete:
            cut_off(http_request)
            return response
    except EngineStopped:
        await response.write(answers.error_event(answers.ENGINE_FAILED, "InternalServerError", 500) + answers.DONE)
    finally:
        driver.remove(waiter)
    await response.write_eof()
    return response


async def _write_events(
    response: web.StreamResponse,
    request: AcceptedRequest,
    context: ServerContext,
    waiter: Waiter,
    specs: list[JobSpec],
    answers_so_far: list[_AnswerProgress],
) -> bool:
    """Write the stream to its end; False if a fault cut it. EngineStopped if the fault is an error event."""
    completion, generator, interval = request.completion, context.generator, context.model.stream_interval
    chunks: ChunkWriter | MessageEvents | ResponseEvents
    if request.interface is None:
        chunks = ChunkWriter(request.id, request.created, completion.model, chat=completion.chat)
    else:
        chunks = MessageEvents(request.facts) if request.interface is MESSAGES else ResponseEvents(request.facts)
    indexes = {job_id: index for index, job_id in enumerate(waiter.ids)}
    unfinished = len(indexes)
    cached = 0
    while unfinished:
        out = []
        for event in await waiter.take():
            index = indexes[event.id]
            answer = answers_so_far[index]
            if isinstance(event, FirstToken):
                cached += event.cached_tokens if index % completion.n == 0 else 0
                answer.generated = 1
                if completion.chat:
                    out.append(chunks.role(index))
                if interval > 1:
                    continue
            else:
                answer.generated = event.tokens
                if isinstance(event, Finished):
                    answer.reason = event.reason
                    unfinished -= 1
            if answer.reason is None and answer.generated - answer.sent < interval:
                continue
            text = generator.text(answer.start, answer.sent, answer.generated)
            answer.sent = answer.generated
            usage = None
            if completion.continuous_usage:
                usage = _usage(request, context, sum(item.generated for item in answers_so_far), cached)
            last = not (unfinished or completion.include_usage)
            out.append(chunks.text(index, text, answer.reason, usage, last=last))
            if request.cut_after is not None and answer.sent >= request.cut_after:
                await response.write(b"".join(out))
                if request.cut_with_error:
                    raise EngineStopped
                return False
        if out:
            await response.write(b"".join(out))
    end = chunks.done
    if completion.include_usage or request.interface is not None:
        end = chunks.usage(_usage(request, context, sum(spec.output_tokens for spec in specs), cached)) + end
    await response.write(end)
    return True
