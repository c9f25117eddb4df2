"""Health, readiness and metrics over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from dl2.web.metrics import CONTENT_TYPE, Metrics


@dataclass(frozen=True, slots=True)
class Probes:
    """Each returns an empty string when all is well, else what is wrong."""

    health: Callable[[], str]
    ready: Callable[[], str]
    collect: Callable[[], None] = lambda: None  # brings gauges up to date before they are read


class WebServer:
    def __init__(self, metrics: Metrics, probes: Probes, host: str, port: int) -> None:
        self._metrics, self._probes, self._host, self._port = metrics, probes, host, port
        self._runner: web.AppRunner | None = None

    async def start(self) -> int:
        """Listen. Returns the port (0 asks for any free one). Raises OSError when it is taken."""
        app = web.Application()
        app.router.add_get("/healthz", self._answer(self._probes.health))
        app.router.add_get("/readyz", self._answer(self._probes.ready))
        app.router.add_get("/metrics", self._metrics_page)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        port: int = self._runner.addresses[0][1]
        return port

    async def stop(self) -> None:
        if self._runner:
            await self._runner.cleanup()

    @staticmethod
    def _answer(probe: Callable[[], str]) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handler(_request: web.Request) -> web.Response:
            problem = probe()
            return web.Response(status=503 if problem else 200, text=problem or "ok")

        return handler

    async def _metrics_page(self, _request: web.Request) -> web.Response:
        self._probes.collect()
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})
