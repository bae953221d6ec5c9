"""The study server's pod is replaced when its node is lost, and only then."""

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tuning_operator.kube.loop.server_pod import PATIENCE, is_lost, replace_lost_server
from tuning_operator.kube.ports.kube_api import KubeError

from tests.unit.kube.fake_kube import FakeKube

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def pod(name: str, deleted_before: timedelta | None = None) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "tuning-system"}
    if deleted_before is not None:
        metadata["deletionTimestamp"] = (NOW - deleted_before).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


@pytest.mark.parametrize(
    ("deleted_before", "lost"),
    [
        (None, False),
        (timedelta(seconds=-20), False),  # in its grace period
        (timedelta(seconds=30), False),
        (PATIENCE + timedelta(seconds=1), True),
    ],
)
def test_a_pod_is_lost_when_its_end_is_not_confirmed(deleted_before: timedelta | None, lost: bool) -> None:
    assert is_lost(pod("server-0", deleted_before), NOW) is lost


async def checked(kube: FakeKube) -> None:
    """Check a few times."""
    checks = replace_lost_server(kube, "tuning-system", "server-0", lambda: NOW, seconds=0)
    task = asyncio.create_task(checks)
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_only_the_servers_lost_pod_is_deleted() -> None:
    kube = FakeKube()
    for name in ("server-0", "postgres-0"):
        await kube.create(pod(name, timedelta(minutes=10)))
    await checked(kube)
    assert await kube.get("Pod", "tuning-system", "server-0") is None
    assert await kube.get("Pod", "tuning-system", "postgres-0")
    await kube.create(pod("server-0"))
    await checked(kube)
    assert await kube.get("Pod", "tuning-system", "server-0"), "the replacement"


async def test_an_api_server_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = FakeKube()
    await kube.create(pod("server-0", timedelta(minutes=10)))

    async def fails_once(*place: str) -> dict[str, Any] | None:
        monkeypatch.undo()
        raise KubeError(503, "ServiceUnavailable", "the API server restarts")

    monkeypatch.setattr(kube, "get", fails_once)
    await checked(kube)
    assert await kube.get("Pod", "tuning-system", "server-0") is None
