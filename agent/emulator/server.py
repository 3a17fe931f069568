"""The HTTP side of an emulated model server: an OpenAI-compatible API that answers as the recorded vLLM does.

A request is read and checked by `asks`, runs in the pure engine under the `drive`r, and is written by `answers`. Tokens
leave at the times that the engine gives them. Everything else here is routing, the faults, and what a real server does
when its client goes away (the request is aborted) or when it is told to stop (the port closes at once, open streams end
with an error event, then `[DONE]`).
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
from agent.emulator import accelerators, answers, asks
from agent.emulator.drive import Driver
from agent.emulator.faults import BadFaults, Faults
from agent.emulator.metrics import HttpCounts, PageWriter, Process
from agent.emulator.pages import bad_page
from agent.emulator.settings import Model, Settings
from agent.emulator.streams import Desk, Served, answer_stream, answer_whole
from agent.emulator.text import Voice, detokenize, tokenize

log = logging.getLogger("igw.emulator")

_MAX_BODY_BYTES: Final = 64 << 20
_JSON: Final = "application/json"
_PAGE_TYPE: Final = {"Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
# vLLM's HTTP instrumentation leaves these out (recorded).
_UNCOUNTED: Final = frozenset(
    {"/metrics", "/health", "/ping", "/load", "/version", "/emulator/faults", accelerators.PATH}
)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ModelServer:
    """One emulated server on one port; `die` is what the fault of that name calls, `measure` what the page says of
    the process, and `accelerator` the kind of exporter whose page is served beside (none where it is empty)."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        clock: Clock,
        *,
        die: Callable[[], None],
        measure: Callable[[], Process] = Process,
        accelerator: str = "",
    ) -> None:
        self.settings = settings
        self.model = model
        self.faults = Faults()
        self._accelerator = accelerator
        self.adapters: dict[str, None] = dict.fromkeys(model.adapters)
        self._clock = clock
        self._die = die
        self._measure = measure
        self._dice = random.Random(model.seed)
        self._driver = Driver(settings, clock)
        self._desk = Desk(self._driver, Voice(model.seed), settings, model)
        self._http = HttpCounts()
        self._created = int(clock.wall())
        self._writer = PageWriter(settings, model.name, now=clock.now(), wall=clock.wall())
        self._in_flight = 0
        self._ids = random.Random(f"{model.seed} {clock.wall()}")
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
            "/v1/load_lora_adapter": {"POST": self._load_adapter},
            "/v1/unload_lora_adapter": {"POST": self._unload_adapter},
            "/metrics": {"GET": self._metrics},
            "/health": {"GET": self._health},
            "/ping": {"GET": self._health, "POST": self._health},
            "/version": {"GET": self._version},
            "/load": {"GET": self._load},
            "/tokenize": {"POST": self._tokenize},
            "/detokenize": {"POST": self._detokenize},
            "/reset_prefix_cache": {"POST": self._reset_prefix_cache},
            **({accelerators.PATH: {"GET": self._accelerator_page}} if accelerator else {}),
            "/emulator/faults": {"GET": self._faults, "POST": self._faults, "DELETE": self._faults},
        }

    @property
    def engine_counts(self) -> tuple[int, int]:
        """(running, waiting) as of now."""
        self._driver.engine.settle(self._clock.now())
        return self._driver.engine.running, self._driver.engine.waiting

    async def start(self, host: str, port: int) -> int:
        """Listen when the start-up time is over; the port. OSError if the address cannot be had."""
        wait = self._driver.engine.ready_at - self._clock.now()
        if wait > 0:
            await asyncio.sleep(wait)
        await self._listen(host, port)
        return self._address[1]

    async def _listen(self, host: str, port: int) -> None:
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._server, host, port, backlog=1024)
        name = self._listener.sockets[0].getsockname()
        self._address = (host, name[1])

    async def stop(self) -> None:
        """Close the port, end open streams with an error event, let them go."""
        self._stopping = True
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        self._driver.break_off()
        self._server.pre_shutdown()
        await self._server.shutdown(1.0)
        self._driver.stop()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.path
        handlers = self._routes.get(path)
        began = self._clock.now()
        if handlers is None:
            response: web.StreamResponse = _json(404, b'{"detail":"Not Found"}')
        elif request.method not in handlers:
            response = _json(405, b'{"detail":"Method Not Allowed"}', {"Allow": ", ".join(handlers)})
        else:
            try:
                response = await handlers[request.method](request)
            except asks.Refusal as refusal:
                response = _json(refusal.status, refusal.body())
            except ConnectionResetError:  # the client has left: nobody hears this answer
                return web.Response(status=499)
        if path not in _UNCOUNTED:
            handler = path if handlers is not None else "none"
            sent = response.content_length or 0
            received = request.content_length or 0
            now = self._clock.now()
            self._http.add(handler, request.method, response.status, received, sent, now - began, began)
        return response

    async def _completions(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(request, chat=False)

    async def _chat(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self._serve(request, chat=True)

    async def _serve(self, request: web.BaseRequest, *, chat: bool) -> web.StreamResponse:
        body = await request.read()
        faults = self.faults
        fault = faults.completions if faults.completions != "ok" else ""
        if fault and faults.completions_ratio < 1.0 and self._dice.random() >= faults.completions_ratio:
            fault = ""
        if fault == "hang":
            await _for_ever()
        if fault == "reset":
            return _reset(request)
        if fault == "error":
            raise asks.Refusal(faults.completions_status, "a fault that was asked for", "InternalServerError")
        if self._stopping:
            raise asks.Refusal(500, "cannot schedule new futures after shutdown", "InternalServerError")
        fields = asks.parse_json(body, request.headers.get("Content-Type", ""))
        name = asks.model_of(fields, self.model.name, self.adapters)
        ask = asks.parse(fields, chat=chat, model=name, max_model_len=self.settings.max_model_len)
        told_id = request.headers.get("X-Request-Id", "")  # may hold bytes that are no UTF-8, and JSON cannot
        client_id = told_id.encode("utf-8", "replace").decode() or f"{self._ids.getrandbits(64):016x}"
        served = Served(
            ask=ask,
            id=("chatcmpl-" if chat else "cmpl-") + client_id,
            created=int(self._clock.wall()),
            headers={"X-Request-Id": client_id},
            lora="" if name == self.model.name else name,
            cut_after=faults.cut_after_tokens if fault in ("cut", "cut_with_error") else None,
            cut_with_error=fault == "cut_with_error",
        )
        self._in_flight += 1
        try:
            answer = answer_stream if ask.stream else answer_whole
            return await answer(request, served, self._desk)
        finally:
            self._in_flight -= 1

    async def _metrics(self, request: web.BaseRequest) -> web.StreamResponse:
        faults = self.faults
        if faults.metrics == "hang":
            await _for_ever()
        if faults.metrics == "slow":
            await asyncio.sleep(faults.metrics_delay_seconds)
        page = self._writer.page(self._driver.engine, self._clock.now(), self._measure(), self._http)
        if faults.metrics not in ("ok", "slow"):
            return await bad_page(request, faults, page)
        return web.Response(body=page, headers=_PAGE_TYPE)

    async def _health(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.faults.health == "hang":
            await _for_ever()
        return web.Response(status=503 if self.faults.health == "error" else 200)

    async def _accelerator_page(self, request: web.BaseRequest) -> web.StreamResponse:
        fault = self.faults.accelerator
        if fault == "hang":
            await _for_ever()
        if fault == "error":
            return web.Response(status=500)
        running, _ = self.engine_counts
        device = accelerators.device(self._address[1], running, self.settings.max_num_seqs)
        return web.Response(body=accelerators.page(self._accelerator, device, self.faults), headers=_PAGE_TYPE)

    async def _version(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(200, b'{"version":"0.32.0"}')

    async def _load(self, request: web.BaseRequest) -> web.StreamResponse:
        return _json(200, b'{"server_load":%d}' % self._in_flight)

    async def _models(self, request: web.BaseRequest) -> web.StreamResponse:
        adapters = tuple(self.adapters)
        return _json(200, answers.model_list(self.model.name, adapters, self._created, self.settings.max_model_len))

    async def _tokenize(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = asks.parse_json(await request.read(), request.headers.get("Content-Type", ""))
        asks.model_of(fields, self.model.name, self.adapters)
        chat = "messages" in fields
        tokens = asks.chat_prompt(fields) if chat else tokenize(asks.text_of(fields, "prompt"))
        strings = [detokenize([token]) for token in tokens] if fields.get("return_token_strs") else None
        answer = {
            "count": len(tokens),
            "max_model_len": self.settings.max_model_len,
            "tokens": tokens.tolist(),
            "token_strs": strings,
        }
        return _json(200, orjson.dumps(answer))

    async def _detokenize(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = asks.parse_json(await request.read(), request.headers.get("Content-Type", ""))
        asks.model_of(fields, self.model.name, self.adapters)
        return _json(200, orjson.dumps({"prompt": detokenize(asks.ids_of(fields, "tokens"))}))

    async def _load_adapter(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = asks.parse_json(await request.read(), request.headers.get("Content-Type", ""))
        name = asks.text_of(fields, "lora_name")
        if not self.settings.max_loras:
            raise asks.Refusal(400, "LoRA is off: start the emulator with --max-loras", "InvalidUserInput")
        if name in self.adapters:
            text = (
                f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                "'load_inplace' to True."
            )
            raise asks.Refusal(400, text, "InvalidUserInput")
        self.adapters[name] = None
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload_adapter(self, request: web.BaseRequest) -> web.StreamResponse:
        fields = asks.parse_json(await request.read(), request.headers.get("Content-Type", ""))
        name = asks.text_of(fields, "lora_name")
        if name not in self.adapters:
            raise asks.Refusal(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        del self.adapters[name]
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")

    async def _reset_prefix_cache(self, request: web.BaseRequest) -> web.StreamResponse:
        self._driver.engine.settle(self._clock.now())
        self._driver.engine.cache.forget()
        return _json(200, b'{"success":true}')

    async def _faults(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "DELETE":
            self.faults = Faults()
        elif request.method == "POST":
            # Of any content type, as `curl -d` has another one: this path is ours, not vLLM's.
            fields = asks.parse_json(await request.read(), "application/json")
            try:
                self.faults = self.faults.changed(fields)
            except BadFaults as bad:
                raise asks.Refusal(400, str(bad), "BadRequestError") from bad
            if self.faults.die:
                log.warning("told to die")
                self._die()
            seconds = self.faults.refuse_seconds
            self.faults = self.faults.changed({"refuse_seconds": 0.0, "die": False})
            if seconds > 0:
                task = asyncio.get_running_loop().create_task(self._refuse(seconds))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return _json(200, orjson.dumps(self.faults.show()))

    async def _refuse(self, seconds: float) -> None:
        """Close the port and all connections, and open it again later."""
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
    """A request whose body may be as large as a long prompt; aiohttp's own limit is 1 MiB."""
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=_MAX_BODY_BYTES)


def _json(status: int, body: bytes, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(status=status, body=body, content_type=_JSON, headers=headers)


def _reset(request: web.BaseRequest) -> web.StreamResponse:
    """Throw the connection away without an answer."""
    if isinstance(request.transport, asyncio.Transport):
        request.transport.abort()
    return web.Response(status=500)


async def _for_ever() -> None:
    """Wait until the client goes away or the server stops."""
    await asyncio.Event().wait()
