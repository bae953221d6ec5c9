"""Workers: an error costs a back-off, never the worker."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from tuning_operator.kube.loop.metrics import Metrics
from tuning_operator.kube.loop.result import Result
from tuning_operator.kube.loop.worker import work
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.protocol import StudyKey

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.looptime

KEY, OTHER = StudyKey("ml", "a"), StudyKey("ml", "b")
GONE, QUIET, NO_PROGRESS = Result("gone"), Result("waiting"), Result("no_progress", 0)
ETCD = KubeError(500, "", "etcd")


def again(after: float) -> Result:
    return Result("acted", after)


class Scripted:
    """Answers passes from a script, the last entry forever; notes when they came."""

    def __init__(self, **scripts: list[Result | Exception]) -> None:
        self.scripts = scripts
        self.passes: list[tuple[str, float]] = []
        self.during: Callable[[], None] = lambda: None

    async def reconcile(self, key: StudyKey) -> Result:
        self.passes.append((key.name, round(asyncio.get_running_loop().time(), 2)))
        self.during()
        script = self.scripts[key.name]
        answer = script.pop(0) if len(script) > 1 else script[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Running:
    """A queue with one worker."""

    def __init__(self, reconciler: Scripted) -> None:
        self.queue: WorkQueue[StudyKey] = WorkQueue()
        self.metrics = Metrics(lambda: len(self.queue))
        self.task = asyncio.create_task(work(self.queue, reconciler, self.metrics, resync_seconds=180))

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        assert not self.task.done(), "the worker lives"


async def run(reconciler: Scripted, *keys: StudyKey, seconds: float) -> Running:
    running = Running(reconciler)
    for key in keys:
        running.queue.add(key)
    await running.wait(seconds)
    return running


async def test_errors_back_off_and_others_are_served() -> None:
    reconciler = Scripted(a=[ETCD, ValueError("a bug"), NO_PROGRESS, again(30.0)], b=[QUIET])
    await run(reconciler, KEY, OTHER, seconds=32)
    assert reconciler.passes == [("a", 0), ("b", 0), ("a", 0.25), ("a", 0.75), ("a", 1.75), ("a", 31.75)]


async def test_a_pass_that_succeeds_resets_the_back_off() -> None:
    reconciler = Scripted(a=[ETCD, ETCD, again(10), ETCD, QUIET])
    await run(reconciler, KEY, seconds=11.5)
    assert reconciler.passes == [("a", 0), ("a", 0.25), ("a", 0.75), ("a", 10.75), ("a", 11.0)]


async def test_no_progress_does_not_reset_the_back_off() -> None:
    reconciler = Scripted(a=[NO_PROGRESS])
    await run(reconciler, KEY, seconds=4)
    assert reconciler.passes == [("a", 0), ("a", 0.25), ("a", 0.75), ("a", 1.75), ("a", 3.75)]


async def test_each_study_comes_back_at_the_resync() -> None:
    reconciler = Scripted(a=[QUIET, again(1000), QUIET])
    await run(reconciler, KEY, seconds=400)
    assert reconciler.passes == [("a", 0), ("a", 180), ("a", 360)]


async def test_a_study_that_is_over_comes_back_every_hour_and_when_something_happens() -> None:
    """A pass over it makes the study server read its whole record."""
    over = Result("waiting", over=True)
    reconciler = Scripted(a=[over, over, over, Result("waiting", 30, over=True), QUIET])
    running = await run(reconciler, KEY, seconds=3700)
    running.queue.add(KEY)
    await running.wait(3800)
    assert reconciler.passes == [("a", 0), ("a", 3600), ("a", 3700), ("a", 7300), ("a", 7330)]


async def test_at_once_means_at_once() -> None:
    reconciler = Scripted(a=[again(0), again(0), QUIET])
    await run(reconciler, KEY, seconds=1)
    assert Counter(reconciler.passes) == {("a", 0): 3}


async def test_a_study_that_is_gone_does_not_come_back() -> None:
    """Neither by itself nor because one of its Jobs changed during the pass."""
    reconciler = Scripted(a=[GONE])
    running = Running(reconciler)
    reconciler.during = lambda: running.queue.add_after(KEY, 5)
    running.queue.add(KEY)
    await running.wait(1000)
    assert reconciler.passes == [("a", 0)]


async def test_a_study_that_is_gone_leaves_no_back_off_behind() -> None:
    """One of the same name that is created later starts with a short one."""
    reconciler = Scripted(a=[ETCD, ETCD, GONE, ETCD, QUIET])
    running = await run(reconciler, KEY, seconds=10)
    running.queue.add(KEY)
    await running.wait(1)
    assert reconciler.passes == [("a", 0), ("a", 0.25), ("a", 0.75), ("a", 10), ("a", 10.25)]


async def test_a_bug_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await run(Scripted(a=[ETCD, ValueError("a bug"), QUIET]), KEY, seconds=1)
    expected, bug = caplog.records
    assert expected.exc_info is None
    assert bug.exc_info is not None
    assert isinstance(bug.exc_info[1], ValueError)


async def test_passes_are_counted_by_outcome() -> None:
    script = [ETCD, NO_PROGRESS, again(0), QUIET]
    running = await run(Scripted(a=list(script), b=[GONE]), KEY, OTHER, seconds=2)
    found = running.metrics.render().decode()
    for outcome in ("error", "no_progress", "acted", "waiting", "gone"):
        assert f'tuning_operator_passes_total{{outcome="{outcome}"}} 1.0' in found
    assert "tuning_operator_pass_seconds_count 5.0" in found
    assert "tuning_operator_queue_length 0.0" in found
    running.queue.add(KEY)
    assert "tuning_operator_queue_length 1.0" in running.metrics.render().decode()
