"""Running one request: its orders into the engine, its answer onto the wire, whole or as a stream of events."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from agent.emulator import answers
from agent.emulator.answers import Choice, Chunks, Usage
from agent.emulator.asks import Ask, Refusal
from agent.emulator.drive import Broken, Driver, Seat
from agent.emulator.orders import DoesNotFit, Finished, FirstToken, Order, QueueFull
from agent.emulator.pages import cut_off
from agent.emulator.settings import Model, Settings
from agent.emulator.text import Voice, block_hashes, tokenize


@dataclass(frozen=True, slots=True)
class Desk:
    """Where one server's requests are run."""

    driver: Driver
    voice: Voice
    settings: Settings
    model: Model


@dataclass(frozen=True, slots=True)
class Served:
    """A request that was accepted: the ask and what its answer carries; `cut_after` tokens a fault ends its stream."""

    ask: Ask
    id: str
    created: int
    headers: Mapping[str, str]
    lora: str
    cut_after: int | None
    cut_with_error: bool


class _Writing:
    """One of a request's answers while it is written: `sent` of `made` tokens are on the wire."""

    __slots__ = ("made", "reason", "sent", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.made = 0
        self.sent = 0
        self.reason: str | None = None


def _orders(served: Served, desk: Desk) -> tuple[list[Order], list[_Writing]]:
    """One order for each answer, prompt by prompt, with the blocks of prompt and answer."""
    ask, settings, voice = served.ask, desk.settings, desk.voice
    orders, writings = [], []
    for prompt in ask.prompts:
        room = settings.max_model_len - len(prompt)
        most = min(room, ask.most_tokens if ask.most_tokens is not None else room)
        tokens = most if ask.ignore_eos else min(most, desk.model.answer_tokens)
        for choice in range(ask.n):
            start = voice.start(prompt, choice)
            whole = array("I", prompt)
            whole.extend(tokenize(voice.text(start, 0, tokens)))
            orders.append(
                Order(
                    prompt_tokens=len(prompt),
                    output_tokens=tokens,
                    hashes=block_hashes(whole, settings.block_size, served.lora, ask.salt),
                    lora=served.lora,
                    stream=ask.stream,
                    ends="length" if tokens == most else "stop",
                    max_tokens=most,
                    choices=0 if choice else ask.n,
                )
            )
            writings.append(_Writing(start))
    return orders, writings


def _submit(driver: Driver, orders: list[Order]) -> Seat:
    try:
        return driver.submit(orders)
    except QueueFull as full:
        raise Refusal(503, answers.BUSY, "Service Unavailable") from full
    except DoesNotFit as large:
        raise Refusal(400, str(large), "BadRequestError") from large


def _usage(served: Served, desk: Desk, completion: int, cached: int) -> Usage:
    prompt = sum(len(tokens) for tokens in served.ask.prompts)
    size = desk.settings.block_size
    blocks = sum(len(tokens) // size * size for tokens in served.ask.prompts)
    return Usage(prompt, completion, cached, max(0, blocks - cached) if served.ask.chat else None)


async def answer_whole(request: web.BaseRequest, served: Served, desk: Desk) -> web.StreamResponse:
    """Wait for all tokens and answer once; a client that leaves aborts the request. Refusal if the queue is full, the
    request does not fit, or the server stops."""
    ask, driver, voice = served.ask, desk.driver, desk.voice
    orders, writings = _orders(served, desk)
    seat = _submit(driver, orders)
    places = {order_id: index for index, order_id in enumerate(seat.ids)}
    cached = 0
    try:
        while places:
            for event in await seat.take():
                if isinstance(event, FirstToken):
                    cached += event.cached_tokens if places[event.id] % ask.n == 0 else 0
                elif isinstance(event, Finished):
                    writings[places[event.id]].reason = event.reason
                    del places[event.id]
    except Broken:
        raise Refusal(500, answers.BROKEN, "InternalServerError") from None
    finally:
        driver.leave(seat)
    choices = []
    for index, (order, writing) in enumerate(zip(orders, writings, strict=True)):
        text = voice.text(writing.start, 0, order.output_tokens)
        ids = (ask.prompts[index // ask.n].tolist(), tokenize(text).tolist()) if ask.echo_ids else (None, None)
        choices.append(Choice(text, writing.reason or "length", *ids))
    usage = _usage(served, desk, sum(order.output_tokens for order in orders), cached)
    write = answers.chat if ask.chat else answers.completion
    headers = dict(served.headers)
    wanted = request.headers.get("endpoint-load-metrics-format")
    report = answers.load_report(wanted, driver.engine.waiting, driver.engine.kv_usage) if wanted else None
    if report is not None:
        headers["endpoint-load-metrics"] = report
    body = write(served.id, served.created, ask.model, choices, usage)
    return web.Response(body=body, content_type="application/json", headers=headers)


async def answer_stream(request: web.BaseRequest, served: Served, desk: Desk) -> web.StreamResponse:
    """Answer with server-sent events as the tokens come; a client that leaves aborts the request."""
    driver = desk.driver
    orders, writings = _orders(served, desk)
    seat = _submit(driver, orders)
    response = web.StreamResponse(headers=served.headers)
    response.content_type = "text/event-stream"
    response.charset = "utf-8"
    try:
        await response.prepare(request)
        # The headers go out when the stream is accepted, as in the recording, not with the first token.
        await response.write(b"")
        whole = await _write_events(response, served, desk, seat, orders, writings)
        if not whole:
            cut_off(request)
            return response
    except Broken:
        await response.write(answers.error_event(answers.BROKEN, "InternalServerError", 500) + answers.DONE)
    finally:
        driver.leave(seat)
    await response.write_eof()
    return response


async def _write_events(
    response: web.StreamResponse,
    served: Served,
    desk: Desk,
    seat: Seat,
    orders: list[Order],
    writings: list[_Writing],
) -> bool:
    """Write the stream to its end; False if a fault cut it. Broken if the fault is an error event."""
    ask, voice, interval = served.ask, desk.voice, desk.model.stream_interval
    chunks = Chunks(served.id, served.created, ask.model, chat=ask.chat)
    places = {order_id: index for index, order_id in enumerate(seat.ids)}
    open_answers = len(places)
    cached = 0
    while open_answers:
        out = []
        for event in await seat.take():
            index = places[event.id]
            writing = writings[index]
            if isinstance(event, FirstToken):
                cached += event.cached_tokens if index % ask.n == 0 else 0
                writing.made = 1
                if ask.chat:
                    out.append(chunks.role(index))
                if interval > 1:
                    continue
            else:
                writing.made = event.tokens
                if isinstance(event, Finished):
                    writing.reason = event.reason
                    open_answers -= 1
            if writing.reason is None and writing.made - writing.sent < interval:
                continue
            text = voice.text(writing.start, writing.sent, writing.made)
            writing.sent = writing.made
            usage = None
            if ask.continuous_usage:
                usage = _usage(served, desk, sum(item.made for item in writings), cached)
            last = not (open_answers or ask.include_usage)
            out.append(chunks.text(index, text, writing.reason, usage, last=last))
            if served.cut_after is not None and writing.sent >= served.cut_after:
                await response.write(b"".join(out))
                if served.cut_with_error:
                    raise Broken
                return False
        if out:
            await response.write(b"".join(out))
    end = answers.DONE
    if ask.include_usage:
        end = chunks.usage(_usage(served, desk, sum(order.output_tokens for order in orders), cached)) + end
    await response.write(end)
    return True
