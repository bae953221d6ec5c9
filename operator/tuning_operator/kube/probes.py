"""The operator's own HTTP port: /healthz for the kubelet, /metrics for Prometheus."""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest


def application(age: Callable[[], float], stuck_seconds: float) -> web.Application:
    """Return the application; `age` tells how long work has waited without a pass coming to its end."""

    async def healthz(_: web.Request) -> web.Response:
        seconds = age()
        status = 200 if seconds < stuck_seconds else 503
        return web.Response(status=status, text=f"last pass {seconds:.0f} s ago, or nothing to do\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/metrics", metrics)
    return app


async def serve(app: web.Application, host: str, port: int) -> web.AppRunner:
    """Listen; the caller cleans the runner up."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, host, port).start()
    return runner
