"""The operator's own HTTP port: /healthz for the kubelet, /metrics for Prometheus."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from tuning_operator.kube.loop.metrics import Metrics


def application(age: Callable[[], float], stuck_seconds: float, metrics: Metrics) -> web.Application:
    """Return the application.

    Args:
        age: returns how long studies have been waiting without a pass finishing.
        stuck_seconds: the age from which on /healthz fails.
        metrics: what /metrics serves.
    """

    async def healthz(_: web.Request) -> web.Response:
        seconds = age()
        if seconds < stuck_seconds:
            return web.Response(text="ok\n")
        return web.Response(status=503, text=f"studies are waiting, and no pass ended for {seconds:.0f} s\n")

    async def render(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", render)
    return app


async def serve(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Listen; the caller cleans the runner up."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
