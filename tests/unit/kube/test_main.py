"""The operator's process: what it waits for as it starts, and what it gives to trials."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING

from aiohttp import ClientSession
from tuning_operator.kube import main, probes
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.main import runtime, wait_for_studies
from tuning_operator.kube.settings import OperatorSettings

from tests.support.loopback import needs_ipv6
from tests.unit.kube.http_stub import HttpStub, disconnects, running
from tests.unit.kube.test_kubernetes import client_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


async def test_the_operator_waits_for_the_api_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Through everything that may be wrong while both start, a little longer each time."""
    stub, metrics = HttpStub(), Metrics(lambda: 0)
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        match len(delays):
            case 1:
                stub.fault = None
                stub.reply(500, {"message": "etcd is starting"})
            case 2:
                stub.reply(403, {"reason": "Forbidden", "message": "no role is bound yet"})
            case 3:
                stub.reply(404, {"reason": "NotFound", "message": "the path does not exist"})
            case 7:
                stub.reply(200, {"kind": "APIResourceList", "resources": []})

    monkeypatch.setattr(main, "asyncio", SimpleNamespace(sleep=sleep))
    stub.fault = disconnects
    async with running(stub):
        kube = client_of(stub, metrics)
        await wait_for_studies(kube)
        await kube.close()
    assert delays == [1, 2, 4, 8, 16, 30, 30]
    reasons = "\n".join(record.getMessage() for record in caplog.records)
    for reason in ("does not reply", "etcd is starting", "no role is bound yet", "CRD of TuningStudy"):
        assert reason in reasons


@needs_ipv6
async def test_by_default_the_probes_listen_on_ipv4_and_ipv6(tmp_path: Path) -> None:
    settings = OperatorSettings(study_server_urls=["https://studies:8443"], token_file=tmp_path / "token")
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as free:
        port = free.getsockname()[1]
    app = probes.application(lambda: 0, settings.stuck_seconds, Metrics(lambda: 0))
    listener = await probes.serve(app, settings.probe_host, port)
    async with ClientSession() as client:
        for address in ("127.0.0.1", "[::1]"):
            async with client.get(f"http://{address}:{port}/healthz") as response:
                assert response.status == 200, address
    await listener.cleanup()


def test_trials_get_the_ca_of_now(tmp_path: Path) -> None:
    file = tmp_path / "ca.crt"
    settings = OperatorSettings(
        study_server_urls=["https://studies:8443"], token_file=tmp_path / "token", study_server_ca_file=file
    )
    for ca in ("first", "second"):
        file.write_text(ca)
        assert runtime(settings, "https://studies:8443").ca == ca
