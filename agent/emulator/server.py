"""The HTTP server of an emulated model server: an OpenAI-compatible API that answers as the recorded vLLM does.

A request is parsed by `requests` and runs in the pure engine under an `EngineDriver`; `completions` writes its answer.
Tokens are sent at the times that the engine computes. This module adds the routes, the faults, and what a real server
does when a client disconnects (it aborts the request) or when it stops (the port closes at once, open streams end with
an error event and `[DONE]`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import orjson
from aiohttp import StreamReader, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from agent.clock import Clock
from agent.emulator import accelerators, answers, realtime
from agent.emulator.bad_pages import bad_page
from agent.emulator.completions import AcceptedRequest, ServerContext, answer_stream, answer_whole
from agent.emulator.config import EmulatorConfig, ModelSpec
from agent.emulator.driver import EngineDriver
from agent.emulator.faults import Faults, InvalidFault
from agent.emulator.foreign_load import ForeignLoad
from agent.emulator.interfaces import RESPONSES, Interface, interfaces, messages_fields
from agent.emulator.jobs import DoesNotFit
from agent.emulator.metrics import HttpCounters, PageWriter, ProcessStats
from agent.emulator.requests import (
    RequestError,
    chat_prompt,
    parse_completion,
    parse_json,
    requested_model,
    text_field,
    token_ids_field,
)
from agent.emulator.text import TextGenerator, detokenize, tokenize

log = logging.getLogger("igw.emulator")

_MAX_BODY_BYTES: Final = 64 << 20
_JSON: Final = "application/json"
_PAGE_TYPE: Final = {"Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
# vLLM's HTTP instrumentation leaves these out (recorded).
_UNCOUNTED: Final = frozenset(
    {"/metrics", "/health", "/ping", "/load", "/version", "/emulator/faults", accelerators.PATH}
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class EmulatedServer:
    """One emulated server on one port.

    The fault `die` calls `die`; `measure` returns the process statistics of the page; `accelerator` is the kind of
    exporter whose page is served too, empty for none.
    """

    def __init__(
        self,
        config: EmulatorConfig,
        model: ModelSpec,
        clock: Clock,
        *,
        die: Callable[[], None],
        measure: Callable[[], ProcessStats] = ProcessStats,
        accelerator: str = "",
    ) -> None:
        self.config = config
        self.model = model
        self.faults = Faults()
        self._accelerator = accelerator
        self.adapters: dict[str, None] = dict.fromkeys(model.adapters)
        self._clock = clock
        self._die = die
        self._measure = measure
        self._fault_rng = random.Random(model.seed)
        self._driver = EngineDriver(config, clock)
        self._foreign = ForeignLoad(self._driver)
        self._context = ServerContext(self._driver, TextGenerator(model.seed), config, model)
        self._http = HttpCounters()
        self._created = int(clock.wall())
        self._writer = PageWriter(config, model.name, now=clock.now(), wall=clock.wall())
        self._in_flight = 0
        self._id_rng = random.Random(f"{model.seed} {clock.wall()}")
        self._stopping = False
        self._server = web.Server(
            self._handle,
            request_factory=_request,
            handler_cancellation=True,
            access_log=None,
            keepalive_timeout=75.0,
        )
        self._listener: asyncio.Server | None = None
        self._address: tuple[str, int] = ("", 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._routes: Mapping[str, Mapping[str, Handler]] = {
            "/v1/completions": {"POST": self._completions},
            "/v1/chat/completions": {"POST": self._chat},
            "/v1/models": {"GET": self._models},
            "/v1/realtime": {"GET": self._realtime},
            "/v1/load_lora_adapter": {"POST": self._load_adapter},
            "/v1/unload_lora_adapter": {"POST": self._unload_adapter},
            "/metrics": {"GET": self._metrics},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/v1/messages/count_tokens": {"POST": self._count_tokens},
            "/reset_prefix_cache": {"POST": self._reset_prefix_cache},
            "/sleep": {"POST": self._sleep},
            "/wake_up": {"POST": self._wake_up},
            "/is_sleeping": {"GET": self._is_sleeping},
            **({accelerators.PATH: {"GET": self._accelerator_page}} if accelerator else {}),
            "/emulator/faults": {"GET": self._faults, "POST": self._faults, "DELETE": self._faults},
        }
        self._interfaces = interfaces((model.name, *model.adapters))
        self._routes = {**self._routes, **{path: {"POST": self._other} for path in self._interfaces}}

    @property
    def queue_lengths(self) -> tuple[int, int]:
        """(running, waiting) requests as of now."""
        self._driver.engine.settle(self._clock.now())
        return self._driver.engine.running, self._driver.engine.waiting

    @property
    def in_flight(self) -> int:
        """Requests whose answer has not ended, as `/load` shows them."""
        return self._in_flight

    async def start(self, host: str, port: int) -> int:
        """Listen when the start-up time is over; the port. OSError if the address cannot be bound."""
        delay = self._driver.engine.ready_at - self._clock.now()
        if delay > 0:
            await asyncio.sleep(delay)
        await self._listen(host, port)
        return self._address[1]

    async def _listen(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._server, host, port, backlog=1024)
        name = self._listener.sockets[0].getsockname()
        self._address = (host, name[1])

    async def stop(self) -> None:
        """Close the port, then end open streams with an error event."""
        self._stopping = True
        if self._listener is not None:
            # asyncio of Python 3.11 loses a connection that was accepted in this turn if the listener closes before it
            # has a transport.
            loop = asyncio.get_running_loop()
            for each in self._listener.sockets:
                loop.remove_reader(each.fileno())
            loop.call_soon(self._listener.close)
            await asyncio.sleep(0)
        for task in list(self._tasks):
            task.cancel()
        self._foreign.stop()
        self._driver.stop_waiters()
        self._server.pre_shutdown()
        await self._server.shutdown(1.0)
        self._driver.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        handlers = self._routes.get(path)
        start = self._clock.now()
        if handlers is None:
            response: web.StreamResponse = _json(404, b'{"detail":"Not Found"}')
        elif request.method not in handlers:
            response = _json(405, b'{"detail":"Method Not Allowed"}', {"Allow": ", ".join(handlers)})
        else:
            try:
                response = await handlers[request.method](request)
            except RequestError as error:
                response = _json(error.status, error.body())
            except ConnectionResetError:  # the client has disconnected: this response is not sent
                return web.Response(status=499)
        if path not in _UNCOUNTED:
            handler = path if handlers is not None else "none"
            sent = response.content_length or 0
            received = request.content_length or 0
            now = self._clock.now()
            self._http.add(handler, request.method, response.status, received, sent, now - start, start)
        return response

    async def _completions(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(request, chat=False)

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(request, chat=True)

    async def _other(self, request: web.BaseRequest) -> web.StreamResponse:
        interface = self._interfaces[request.path]
        return await self._serve(request, chat=interface.chat, interface=interface)

    async def _serve(
        self, request: web.BaseRequest, *, chat: bool, interface: Interface | None = None
    ) -> web.StreamResponse:
        body = await request.read()
        faults = self.faults
        fault = faults.completions if faults.completions != "ok" else ""
        if fault and faults.completions_ratio < 1.0 and self._fault_rng.random() >= faults.completions_ratio:
            fault = ""
        if fault == "hang":
            await _never()
        if fault == "reset":
            return _reset(request)
        if fault == "error":
            raise RequestError(faults.completions_status, "injected fault", "InternalServerError")
        if self._stopping:
            raise RequestError(500, "cannot schedule new futures after shutdown", "InternalServerError")
        fields = parse_json(body, request.headers.get("Content-Type", ""))
        if interface is not None:
            fields = interface.convert(fields) | {"n": 1}
        name = requested_model(fields, self.model.name, self.adapters)
        completion = parse_completion(fields, chat=chat, model=name, max_model_len=self.config.max_model_len)
        given_id = request.headers.get("X-Request-Id", "")  # may hold bytes that JSON cannot: invalid UTF-8
        request_id = given_id.encode("utf-8", "replace").decode() or f"{self._id_rng.getrandbits(64):016x}"
        accepted = AcceptedRequest(
            completion=completion,
            id=("resp_" if interface is RESPONSES else "chatcmpl-" if chat else "cmpl-") + request_id,
            created=int(self._clock.wall()),
            headers={"X-Request-Id": request_id},
            lora="" if name == self.model.name else name,
            cut_after=faults.cut_after_tokens if fault in ("cut", "cut_with_error") else None,
            cut_with_error=fault == "cut_with_error",
            interface=interface,
        )
        self._in_flight += 1
        try:
            streamed = completion.stream and (interface is None or interface.stream)
            answer = answer_stream if streamed else answer_whole
            return await answer(request, accepted, self._context)
        finally:
            self._in_flight -= 1

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        faults = self.faults
        if faults.metrics == "hang":
            await _never()
        if faults.metrics == "slow":
            await asyncio.sleep(faults.metrics_delay_seconds)
        page = self._writer.page(self._driver.engine, self._clock.now(), self._measure(), self._http)
        if faults.metrics not in ("ok", "slow"):
            return await bad_page(request, faults, page)
        return web.Response(body=page, headers=_PAGE_TYPE)

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.faults.health == "hang":
            await _never()
        return web.Response(status=503 if self.faults.health == "error" else 200)

    async def _accelerator_page(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self.faults.accelerator
        if fault == "hang":
            await _never()
        if fault == "error":
            return web.Response(status=500)
        running, _ = self.queue_lengths
        device = accelerators.emulated_device(self._address[1], running, self.config.max_num_seqs)
        return web.Response(body=accelerators.page(self._accelerator, device, self.faults), headers=_PAGE_TYPE)

    async def _version(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(200, b'{"version":"0.32.0"}')

    async def _load(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(200, b'{"server_load":%d}' % self._in_flight)

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        adapters = tuple(self.adapters)
        return _json(200, answers.model_list(self.model.name, adapters, self._created, self.config.max_model_len))

    async def _realtime(self, request: web.BaseRequest) -> web.StreamResponse:
        self._in_flight += 1
        try:
            return await realtime.serve(
                request, self.model.name, self._clock, f"sess-{self._id_rng.getrandbits(64):016x}"
            )
        finally:
            self._in_flight -= 1

    async def _tokenize(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = parse_json(await request.read(), request.headers.get("Content-Type", ""))
        requested_model(fields, self.model.name, self.adapters)
        chat = "messages" in fields
        tokens = chat_prompt(fields) if chat else tokenize(text_field(fields, "prompt"))
        strings = [detokenize([token]) for token in tokens] if fields.get("return_token_strs") else None
        answer = {
            "count": len(tokens),
            "max_model_len": self.config.max_model_len,
            "tokens": tokens.tolist(),
            "token_strs": strings,
        }
        return _json(200, orjson.dumps(answer))

    async def _detokenize(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = parse_json(await request.read(), request.headers.get("Content-Type", ""))
        requested_model(fields, self.model.name, self.adapters)
        return _json(200, orjson.dumps({"prompt": detokenize(token_ids_field(fields, "tokens"))}))

    async def _load_adapter(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = parse_json(await request.read(), request.headers.get("Content-Type", ""))
        name = text_field(fields, "lora_name")
        if not self.config.max_loras:
            raise RequestError(400, "LoRA is off: start the emulator with --max-loras", "InvalidUserInput")
        if name in self.adapters:
            text = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True."
            )
            raise RequestError(400, text, "InvalidUserInput")
        self.adapters[name] = None
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_adapter(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = parse_json(await request.read(), request.headers.get("Content-Type", ""))
        name = text_field(fields, "lora_name")
        if name not in self.adapters:
            raise RequestError(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _count_tokens(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = messages_fields(parse_json(await request.read(), request.headers.get("Content-Type", "")))
        requested_model(fields, self.model.name, self.adapters)
        return _json(200, orjson.dumps({"input_tokens": len(chat_prompt(fields))}))

    async def _sleep(self, request: web.BaseRequest) -> web.StreamResponse:
        level = request.query.get("level", "1")
        if level not in {"1", "2"}:
            raise RequestError(400, "level must be 1 or 2", "BadRequestError", "level")
        self._driver.engine.sleep(self._clock.now(), int(level))
        self._driver.engine_changed()
        return web.Response(status=200)

    async def _wake_up(self, request: web.BaseRequest) -> web.StreamResponse:
        self._driver.engine.wake(self._clock.now())
        self._driver.engine_changed()
        return web.Response(status=200)

    async def _is_sleeping(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(200, orjson.dumps({"is_sleeping": self._driver.engine.sleep_level > 0}))

    async def _reset_prefix_cache(self, request: web.BaseRequest) -> web.StreamResponse:
        self._driver.engine.settle(self._clock.now())
        self._driver.engine.cache.drop_idle()
        return _json(200, b'{"success":true}')

    async def _faults(self, request: web.BaseRequest) -> web.StreamResponse:
        before = self.faults
        if request.method == "DELETE":
            self.faults = Faults()
        elif request.method == "POST":
            # Any content type, as `curl -d` sends another one; vLLM does not have this path.
            fields = parse_json(await request.read(), "application/json")
            try:
                self.faults = self.faults.changed(fields)
            except InvalidFault as bad:
                raise RequestError(400, str(bad), "BadRequestError") from bad
            if self.faults.die:
                log.warning("exiting for the fault `die`")
                self._die()
            seconds = self.faults.refuse_seconds
            self.faults = self.faults.changed({"refuse_seconds": 0.0, "die": False})
            if seconds > 0:
                task = asyncio.get_running_loop().create_task(self._refuse(seconds))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        load = self.faults.foreign_requests, self.faults.foreign_answer_tokens
        if load != (before.foreign_requests, before.foreign_answer_tokens):
            try:
                self._foreign.set(*load)
            except DoesNotFit as bad:
                self.faults = before
                raise RequestError(400, f"foreign_answer_tokens: {bad}", "BadRequestError") from bad
        return _json(200, orjson.dumps(self.faults.show()))

    async def _refuse(self, seconds: float) -> None:
        """Close the port and all connections, and listen again after `seconds`."""
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._server.connections):
            transport = connection.transport
            if transport is not None:
                transport.abort() if isinstance(transport, asyncio.Transport) else transport.close()
        await asyncio.sleep(seconds)
        await self._listen(*self._address)


def _request(
    message: RawRequestMessage,
    payload: StreamReader,
    protocol: RequestHandler,
    writer: AbstractStreamWriter,
    task: asyncio.Task[None],
) -> web.BaseRequest:
    """A request with a limit for long prompts; aiohttp's default is 1 MiB."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES)


def _json(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, content_type=_JSON, headers=headers)


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    """Reset the connection without a response."""
    if isinstance(request.transport, asyncio.Transport):
        request.transport.abort()
    return web.Response(status=500)


async def _never() -> None:
    """Wait until the client disconnects or the server stops."""
    await asyncio.Event().wait()
