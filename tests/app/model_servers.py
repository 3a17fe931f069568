"""Model servers as little as they can be: a page of metrics and a list of models, in the test's own event loop."""

from __future__ import annotations

from aiohttp import web

from tests.waiting import eventually

PAGE = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{engine="0",model_name="m"}} 0.25
"""


class ModelServer:
    """One server; `address` once it listens. `asked` counts the pages that it gave."""

    def __init__(self) -> None:
        self.address = ""
        self.asked = 0
        self.running = 0
        self.health = 200
        self.silent = False  # it answers nothing until this is over
        self._runner: web.AppRunner | None = None

    async def start(self) -> ModelServer:
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.address = f"127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        self.asked += 1
        await eventually(lambda: not self.silent)
        page = PAGE.format(running=float(self.running))
        return web.Response(body=page.encode(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})
