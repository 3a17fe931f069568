"""The faulty `/metrics` pages of a server, and connections that end early."""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import web

from agent.emulator.faults import Faults

_HTML: Final = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><h1>Sign in</h1></body></html>\n"
_HUGE_BYTES: Final = 100 << 20
_GAUGES: Final = re.compile(
    rb"^(vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc)\{[^}]*\}) .*$", re.MULTILINE
)


async def bad_page(request: web.BaseRequest, faults: Faults, page: bytes) -> web.StreamResponse:
    """The response for `faults.metrics`: error, empty, html, garbage, cut, nan or huge; `page` is the true page."""
    kind = faults.metrics
    text = {"Content-Type": "text/plain; version=1.0.0; charset=utf-8"}
    if kind == "error":
        return web.Response(status=faults.metrics_status, body=b"Internal Server Error")
    if kind == "empty":
        return web.Response(body=b"", headers=text)
    if kind == "html":
        return web.Response(body=_HTML, content_type="text/html")
    if kind == "garbage":
        return web.Response(body=bytes(range(256)) * (len(page) // 256), headers=text)
    if kind == "nan":
        return web.Response(body=_GAUGES.sub(rb"\1 NaN", page), headers=text)
    response = web.StreamResponse(headers=text)
    if kind == "cut":
        response.content_length = len(page)
        await response.prepare(request)
        await response.write(page[: len(page) // 2])
        cut_off(request)
        return response
    response.content_length = _HUGE_BYTES
    await response.prepare(request)
    filler = b"# " + b"x" * 65_533 + b"\n"
    await response.write(page)
    rest = _HUGE_BYTES - len(page)
    while rest > 0:
        await response.write(filler[-rest:])
        rest -= min(rest, len(filler))
    await response.write_eof()
    return response


def cut_off(request: web.BaseRequest) -> None:
    """Close the connection after what was written, before the response is complete."""
    transport = request.transport
    if isinstance(transport, asyncio.Transport):
        transport.close()
