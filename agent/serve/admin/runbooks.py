"""`/runbooks/`: the pages that the alert rules link to, in the version that was installed with this agent.

Where operators cannot reach an agent, `alerts/render.py` renders links to another place that serves the same pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

from aiohttp import web

from agent.serve.http.responses import HttpError, json_response, text_response
from agent.serve.http.server import HttpRoute

FOLDER: Final = Path(__file__).resolve().parents[3] / "alerts" / "runbooks"  # installed beside this package


@cache
def pages() -> Mapping[str, str]:
    """File name -> its Markdown, sorted by name. Reads the files once."""
    return {page.name: page.read_text("utf-8") for page in sorted(FOLDER.iterdir())}


def routes() -> list[HttpRoute]:
    """The list of the runbooks, and each of them."""
    return [HttpRoute("/runbooks/", _list), HttpRoute("/runbooks/{name}", _page)]


async def _list(request: web.Request) -> web.Response:
    return json_response({"runbooks": list(await asyncio.to_thread(pages))})


async def _page(request: web.Request) -> web.Response:
    """One page as plain text, which every browser shows."""
    name = request.match_info["name"]
    text = (await asyncio.to_thread(pages)).get(name)
    if text is None:
        raise HttpError(404, "no_such_runbook", f"there is no runbook {name[:128]!r}; GET /runbooks/ lists them")
    return text_response(text)
