"""Workers: an error costs a back-off, never the worker."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from tuning_operator.kube.loop.reconciler import NoProgress
from tuning_operator.kube.loop.worker import Pulse, work
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.kubernetes import KubeError
from tuning_operator.protocol import StudyKey

pytestmark = pytest.mark.looptime

KEY, OTHER = StudyKey("ml", "a"), StudyKey("ml", "b")


class Scripted:
    """Answers passes from a script, the last entry for ever; notes when they came."""

    def __init__(self, **scripts: list[float | Exception | None]) -> None:
        self.scripts = scripts
        self.passes: list[tuple[str, float]] = []

    async def reconcile(self, key: StudyKey) -> float | None:
        self.passes.append((key.name, round(asyncio.get_running_loop().time(), 2)))
        script = self.scripts[key.name]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def run(reconciler: Scripted, *keys: StudyKey, seconds: float) -> WorkQueue[StudyKey]:
    queue: WorkQueue[StudyKey] = WorkQueue()
    for key in keys:
        queue.add(key)
    task = asyncio.create_task(work(queue, reconciler, Pulse(queue), resync_seconds=180))
    await asyncio.sleep(seconds)
    assert not task.done(), "the worker lives"
    task.cancel()
    return queue


async def test_errors_back_off_and_others_are_served() -> None:
    reconciler = Scripted(
        a=[KubeError(500, "", "etcd"), ValueError("a bug"), NoProgress(), 30.0], b=[float("inf")]
    )
    await run(reconciler, KEY, OTHER, seconds=32)
    assert reconciler.passes == [("a", 0), ("b", 0), ("a", 0.25), ("a", 0.75), ("a", 1.75), ("a", 31.75)]


async def test_each_study_comes_back_at_the_resync() -> None:
    reconciler = Scripted(a=[float("inf")])
    await run(reconciler, KEY, seconds=400)
    assert reconciler.passes == [("a", 0), ("a", 180), ("a", 360)]


async def test_at_once_means_at_once() -> None:
    reconciler = Scripted(a=[0, 0, float("inf")])
    await run(reconciler, KEY, seconds=1)
    assert Counter(reconciler.passes) == {("a", 0): 3}


async def test_a_study_that_is_gone_does_not_come_back() -> None:
    reconciler = Scripted(a=[None])
    await run(reconciler, KEY, seconds=1000)
    assert reconciler.passes == [("a", 0)]


async def test_the_pulse_ages_only_while_work_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("tuning_operator.kube.loop.worker.time.monotonic", lambda: now)
    queue: WorkQueue[StudyKey] = WorkQueue()
    pulse = Pulse(queue)
    now = 500.0
    assert pulse.age() == 0
    queue.add(KEY)
    now = 800.0
    assert pulse.age() == 300
    pulse.beat()
    assert pulse.age() == 0
