"""The faulty `/metrics` pages of a server, and connections that end early."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from agent.emulator.faults import Faults

_HTML: Final = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><h1>Sign in</h1></body></html>\n"
_HUGE_BYTES: Final = 100 << 20
_GAUGES: Final = re.compile(
    rb"^(vllm:(?:num_requests_running|num_requests_waiting|kv_cache_usage_perc)\{[^}]*\}) .*$", re.MULTILINE
)

_COMMENT: Final = re.compile(rb"^(?!#).*\n", re.MULTILINE)
_ENGINE: Final = re.compile(rb"^(?:# (?:HELP|TYPE) )?vllm:.*\n", re.MULTILINE)
# Pages that are valid and of no use: of a release with other names, of a server with --disable-log-stats, and of a
# server that writes a sample with its first event.
_CHANGES: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "renamed": lambda page: page.replace(b"vllm:", b"renamed_engine_"),
    "no_stats": lambda page: _ENGINE.sub(b"", page),
    "comments": lambda page: _COMMENT.sub(b"", page),
}


async def bad_page(request: web.BaseRequest, faults: Faults, page: bytes) -> web.StreamResponse:
    """The response for `faults.metrics`, which is neither ok nor hang nor slow; `page` is the true page."""
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
    if kind in _CHANGES:
        return web.Response(body=_CHANGES[kind](page), headers=text)
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
