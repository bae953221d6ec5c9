"""The API server rejects, loses or forgets: studies end as if nothing had happened."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest
from kubernetes.aio import client
from tuning_operator.kube.loop.informer import WATCH_SECONDS

from dev.cluster.control_plane import ControlPlane
from tests.api.api import SETUP_MAY_BUILD, Api
from tests.api.faulty_api import Call, Fault, FaultyApi, works
from tests.api.operator_kit import (
    Cluster,
    Pod,
    System,
    all_complete,
    eventually,
    new_namespace,
    phase,
    running_system,
)
from tests.api.trainers import Trainers, audit
from tests.support.postgres import EmbeddedPostgres

TRIALS = 6

pytestmark = SETUP_MAY_BUILD


@pytest.fixture(scope="module")
def proxy(kubeconfig: Path) -> Iterator[FaultyApi]:
    with FaultyApi(kubeconfig) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def postgres() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as postgres:
        yield postgres


@pytest.fixture(scope="module")
def system(
    api: Api, proxy: FaultyApi, postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[System]:
    """The operator reaches the API server only through the proxy."""
    folder = tmp_path_factory.mktemp("system")
    api.expect("create", "serviceaccount", "behind-a-proxy")
    api.expect("create", "clusterrolebinding", "behind-a-proxy", "--clusterrole=cluster-admin",
               "--serviceaccount=default:behind-a-proxy")  # fmt: skip
    token = api.expect("create", "token", "behind-a-proxy").strip()
    kubeconfig = proxy.write_kubeconfig(folder / "kubeconfig", token)
    with running_system(folder, kubeconfig, postgres.url) as system:
        yield system


@pytest.fixture
async def cluster(kubeconfig: Path, system: System, proxy: FaultyApi) -> AsyncIterator[Cluster]:
    async with new_namespace(kubeconfig, system) as cluster, httpx.AsyncClient(timeout=120) as http:
        cluster.node.life = Trainers(http).live
        proxy.calls.clear()
        yield cluster
        proxy.decide, proxy.lines, proxy.page = works, None, None


async def completes_clean(cluster: Cluster, postgres: EmbeddedPostgres, jobs: int = TRIALS) -> None:
    status = await cluster.wait(phase("Completed", "Failed"))
    assert status["trials"] == all_complete(TRIALS)
    assert (len(cluster.node.jobs), len(cluster.node.pods)) == (jobs, jobs)
    await asyncio.to_thread(audit, postgres.url, f"{cluster.namespace}/mnist", TRIALS)


def sometimes(
    rate: float, concerned: Callable[[Call], bool], *faults: Fault
) -> Callable[[Call], Awaitable[Fault | None]]:
    """Fail some of these calls."""
    chance = random.Random(8)

    async def decide(call: Call) -> Fault | None:
        return chance.choice(faults) if concerned(call) and chance.random() < rate else None

    return decide


def of_writes(call: Call) -> bool:
    return call.writes


def of_all(_: Call) -> bool:
    return True


@pytest.mark.parametrize(
    "decide",
    [
        pytest.param(
            sometimes(1 / 3, of_writes, Fault(409, "Conflict"), Fault(409, "Conflict", after=True)),
            id="conflicts",
            marks=pytest.mark.fault(
                "The API server answers a third of the writes with 409, before or after their effect",
                "They are repeated; no trial has two Jobs.",
            ),
        ),
        pytest.param(
            sometimes(1 / 5, of_all, Fault(500, "InternalError"), Fault(500, "InternalError", after=True)),
            id="internal-errors",
            marks=pytest.mark.fault(
                "The API server answers a fifth of all requests with 500, before or after their effect",
                "They are repeated, at growing intervals; no trial has two Jobs.",
            ),
        ),
        pytest.param(
            sometimes(1 / 3, of_writes, Fault(after=True)),
            id="lost-replies",
            marks=pytest.mark.fault(
                "The replies to a third of the writes are lost",
                "What was written is found; no trial has two Jobs.",
            ),
        ),
    ],
)
async def test_requests_fail(
    cluster: Cluster,
    proxy: FaultyApi,
    postgres: EmbeddedPostgres,
    decide: Callable[[Call], Awaitable[Fault | None]],
) -> None:
    proxy.decide = decide
    started = time.monotonic()
    await cluster.apply(maxTrials=TRIALS, parallelism=3, maxFailedTrials=0)
    await completes_clean(cluster, postgres)
    seconds = time.monotonic() - started  # what waits is looked at again
    assert len(proxy.calls) < 150 + 5 * seconds, "it takes 40 without faults"


RETRY_AFTER = 3


@pytest.mark.fault(
    "The API server answers all requests with 429 for some seconds",
    "They are repeated after the time in Retry-After.",
)
async def test_overload(cluster: Cluster, proxy: FaultyApi, postgres: EmbeddedPostgres) -> None:
    """Until it has rejected one of the requests twice."""
    rejected: Counter[tuple[str, str]] = Counter()

    async def decide(call: Call) -> Fault | None:
        if rejected and max(rejected.values()) == 2:
            return None
        rejected[call.method, call.path] += 1
        return Fault(429, "TooManyRequests", RETRY_AFTER)

    proxy.decide = decide
    proxy.cut_watches()
    await cluster.apply(maxTrials=TRIALS, parallelism=3, maxFailedTrials=0)
    await completes_clean(cluster, postgres)
    for number, call in enumerate(proxy.calls):
        again = (
            later
            for later in proxy.calls[number + 1 :]
            if (later.method, later.path) == (call.method, call.path)
        )
        if call.status == 429 and (repeated := next(again, None)):
            assert repeated.time - call.time >= RETRY_AFTER, call


@pytest.mark.fault(
    "The API server ends each watch at once for some seconds, then after one event",
    "Watches begin again after a pause; no event is missed.",
)
async def test_watches_are_cut(cluster: Cluster, proxy: FaultyApi, postgres: EmbeddedPostgres) -> None:
    watched: Counter[str] = Counter()

    async def decide(call: Call) -> None:
        if call.watches:
            watched[call.path.partition("?")[0]] += 1
        if max(watched.values(), default=0) > 3:
            proxy.lines = 1

    proxy.lines, proxy.decide = 0, decide
    proxy.cut_watches()
    start = time.monotonic()
    await cluster.apply(maxTrials=TRIALS, parallelism=3, maxFailedTrials=0)
    await completes_clean(cluster, postgres)
    assert len(watched) == 3, "studies, Jobs and pods"
    most = max(watched.values())
    assert most <= 2 + (time.monotonic() - start) / WATCH_SECONDS, watched


@pytest.mark.fault(
    "etcd is compacted and the API server restarts while a list is read in pages and watches are cut",
    "410 Gone: everything is read again. A Job that was deleted meanwhile is replaced.",
)
async def test_forgotten_versions(
    cluster: Cluster, proxy: FaultyApi, plane: ControlPlane, postgres: EmbeddedPostgres
) -> None:
    go_on, trains = asyncio.Event(), cluster.node.life
    between_pages, restarted = threading.Event(), threading.Event()

    async def life(pod: Pod) -> None:
        await go_on.wait()
        await trains(pod)

    async def decide(call: Call) -> Fault | None:
        if restarted.is_set():
            return None
        if "continue=" in call.path:
            between_pages.set()
            await asyncio.to_thread(restarted.wait)
            return None
        if call.watches:
            return Fault(410, "Expired") if "/jobs" in call.path else Fault(503)
        return None

    async def studies_are_served() -> bool:
        """Custom resources come a moment after the API server is ready."""
        with contextlib.suppress(client.ApiException):
            return bool(await cluster.get())
        return False

    cluster.node.life = life
    await cluster.apply(maxTrials=TRIALS, parallelism=3, maxFailedTrials=0)
    await cluster.wait(lambda status: status.get("trials", {}).get("pending") == 3)
    proxy.page, proxy.decide = 2, decide
    proxy.cut_watches()
    assert await asyncio.to_thread(between_pages.wait, 500)
    batch = client.BatchV1Api(cluster.connection)
    await batch.delete_namespaced_job("mnist-0", cluster.namespace, propagation_policy="Background")
    await asyncio.to_thread(plane.restart_api_server)
    await asyncio.to_thread(plane.compact)
    await eventually(studies_are_served)
    restarted.set()
    go_on.set()
    await completes_clean(cluster, postgres, jobs=TRIALS + 1)
    gone = [call for call in proxy.calls if call.status == 410]
    assert [call for call in gone if "continue=" in call.path], "the list"
    assert [call for call in gone if call.watches and "/jobs" not in call.path], "the watches"
    assert len(gone) < 10
