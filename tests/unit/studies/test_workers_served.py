"""Running trials in the hands of workers: each has one pod, durably, and a lost pod loses none."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from optuna.exceptions import UpdateFinishedTrialError
from tuning_operator.protocol import AskRequest, TellRequest, WorkReply, WorkRequest
from tuning_operator.studies.errors import NotFound
from tuning_operator.studies.study.engine import StudyEngine
from tuning_operator.studies.study.registry import Registry

from tests.support.studies import (  # noqa: F401
    HeldStore,
    Servers,
    ask,
    complete,
    declared,
    definition,
    registry,
    servers,
    threads,
)
from tests.support.study_server import running_server

NOW = 0.0


class Reply(NamedTuple):
    """A WorkReply, with the numbers of the trials to start."""

    start: list[int]
    ended: list[int]
    stopped: list[int]


async def work(
    engine: StudyEngine, pod: str, *running: int, capacity: int = 1, seconds: float = NOW
) -> Reply:
    request = WorkRequest(running=list(running), capacity=capacity, timeout=seconds)
    reply = await engine.work(f"mnist-{pod}-x7k2p" if pod.startswith("w") else pod, request)
    return Reply([view.trial.number for view in reply.start], reply.ended, reply.stopped)


async def test_each_trial_has_one_pod(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    await ask(engine, 3)
    assert (await work(engine, "w0")).start == [0]
    assert (await work(engine, "w1")).start == [1]
    assert (await work(engine, "w0", 0)).start == [], "it has as many as it may"
    assert [trial.worker for trial in (await engine.summary()).running] == [0, 1, None]
    assert (await work(engine, "w2", capacity=5)).start == [2]


async def test_a_worker_may_have_several(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    await ask(engine, 5)
    assert (await work(engine, "w0", capacity=3)).start == [0, 1, 2]
    await engine.tell(1, complete(0.5))
    reply = await work(engine, "w0", 0, 1, 2, capacity=3)
    assert (reply.start, reply.ended, reply.stopped) == ([3], [1], [])


async def test_a_lost_reply_comes_again(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    await ask(engine, 2)
    for _ in range(2):
        assert (await work(engine, "w0")).start == [0]
    assert (await engine.record(0)).pods == 1


async def test_the_next_pod_of_a_slot_gets_the_trial_and_the_earlier_one_never_again(
    registry: Registry,  # noqa: F811
) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    await work(engine, "w0")
    assert (await work(engine, "mnist-w0-later")).start == [0]
    assert engine.workers.has("mnist-w0-later", 0)
    assert not engine.workers.has("mnist-w0-x7k2p", 0)
    assert (await engine.record(0)).pods == 2
    late = await work(engine, "w0", 0)
    assert (late.start, late.ended) == ([], [0]), "it must end its process"
    assert (await work(engine, "w0")).start == []
    assert engine.workers.has("mnist-w0-later", 0)


async def test_a_request_of_a_dead_pod_takes_nothing_from_the_next_one(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    dead = asyncio.create_task(work(engine, "w0", seconds=60))
    await asyncio.sleep(0)
    alive = asyncio.create_task(work(engine, "mnist-w0-later", seconds=60))
    await asyncio.sleep(0)
    await ask(engine, 1)
    assert (await alive).start == [0]
    assert await dead == ([], [], [])
    assert (await work(engine, "mnist-w0-later", 0)).ended == []
    assert (await engine.record(0)).pods == 1


async def test_a_request_of_a_dead_pod_takes_nothing_from_other_workers(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    await ask(engine, 1)
    await work(engine, "w0")
    dead = asyncio.create_task(work(engine, "w0", 0, seconds=60))
    await asyncio.sleep(0)
    assert (await work(engine, "mnist-w0-later")).start == [0]
    await ask(engine, 2)
    assert await dead == ([], [], [])
    assert (await work(engine, "w1")).start == [1]


def test_the_request_of_a_client_that_has_gone_waits_no_longer() -> None:
    with running_server() as server:
        server.operator().put("/v1/studies/ml/mnist", json=definition().model_dump(mode="json"))
        [engine] = server.server.service.studies
        body = WorkRequest(running=[], capacity=1, timeout=300).model_dump_json()
        head = (
            "POST /v1/studies/ml/mnist/workers/0/trials HTTP/1.1\r\nHost: server\r\n"
            f"Authorization: Bearer {server.pod_token('ml', 'mnist', 'w0')}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        address = urlsplit(server.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall((head + body).encode())
            server.wait_until("lets it wait", lambda: bool(engine.workers._waiters))
        server.wait_until("lets it go", lambda: not engine.workers._waiters)
        ask = {"parallelism": 1, "maxTrials": 1}
        asked = server.operator().post("/v1/studies/ml/mnist/ask", json=ask).json()
        assert [trial["worker"] for trial in asked["running"]] == [None]


async def test_a_worker_waits_for_trials_to_start_and_to_end(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    waiting = asyncio.create_task(work(engine, "w0", seconds=60))
    await asyncio.sleep(0)
    await ask(engine, 1)
    assert (await waiting).start == [0]
    waiting = asyncio.create_task(work(engine, "w0", 0, seconds=60))
    await asyncio.sleep(0)
    stop = {"category": "StoppedByUser", "message": "A user stopped the trial."}
    await engine.tell(0, TellRequest.model_validate({"state": "PRUNED", "failure": stop}))
    reply = await waiting
    assert (reply.ended, reply.stopped) == ([0], [0])


async def test_a_worker_that_leaves_gets_no_further_trials(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    await ask(engine, 1)
    assert (await work(engine, "w0", capacity=2)).start == [0]
    leaves = asyncio.create_task(work(engine, "w0", 0, capacity=2, seconds=60))
    await asyncio.sleep(0)
    summary = await engine.ask(AskRequest(parallelism=2, max_trials=9, leaving=[0]))
    assert (summary.leaving, [trial.worker for trial in summary.running]) == ([0], [0, None])
    assert (await work(engine, "mnist-w0-later", capacity=2)).start == [0], "its successor gets its trials"
    stays = asyncio.create_task(work(engine, "mnist-w0-later", 0, capacity=2, seconds=60))
    await asyncio.sleep(0)
    assert (await engine.ask(AskRequest(parallelism=0, max_trials=9))).leaving == []
    assert (await stays).start == [1], "once it is to stay, it takes what waits"
    assert await leaves == ([], [], [])


async def test_another_worker_takes_what_one_that_leaves_does_not(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    await engine.ask(AskRequest(parallelism=1, max_trials=9, leaving=[0]))
    assert (await work(engine, "w0")).start == []
    assert (await work(engine, "w1")).start == [0]


async def test_a_trial_is_a_pods_only_once_that_is_durable(threads: object) -> None:  # noqa: F811
    store = HeldStore()
    engine = await declared(Servers(threads, store).start())  # type: ignore[arg-type]
    await ask(engine, 1)
    store.hold()
    reply = asyncio.create_task(work(engine, "w0"))
    done, _ = await asyncio.wait([reply], timeout=0.05)
    assert not done
    store.let_go()
    assert (await reply).start == [0]


async def test_a_restarted_server_knows_who_has_what(registry: Registry, servers: Servers) -> None:  # noqa: F811
    engine = await declared(registry)
    await ask(engine, 2)
    await work(engine, "w0")
    engine = await declared(servers.start())
    assert [trial.worker for trial in (await engine.summary()).running] == [0, None]
    assert (await work(engine, "w1")).start == [1]
    assert (await work(engine, "w0", 0)).start == []


async def test_workers_of_a_study_that_is_gone_have_nothing_to_wait_for(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    waiting = asyncio.create_task(work(engine, "w0", seconds=60))
    await asyncio.sleep(0)
    await registry.forget(engine.key)
    with pytest.raises(NotFound):
        await waiting


async def test_a_worker_that_runs_an_unknown_trial_is_refused(registry: Registry) -> None:  # noqa: F811
    engine = await declared(registry)
    with pytest.raises(NotFound, match="trial 7"):
        await work(engine, "w0", 7)


async def test_a_trial_that_ends_while_it_is_given_to_a_worker(
    registry: Registry,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = await declared(registry)
    await ask(engine, 1)
    assign = engine.workers.assign

    def refused_once(*arguments: Any) -> WorkReply:
        monkeypatch.setattr(engine.workers, "assign", assign)
        raise UpdateFinishedTrialError

    monkeypatch.setattr(engine.workers, "assign", refused_once)
    assert (await work(engine, "w0")).start == [0]
