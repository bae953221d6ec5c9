"""What happens becomes keys in the queue (tests/api has kopf on a real API server)."""

from __future__ import annotations

import asyncio
from typing import Any

import kopf
import pytest
from tuning_operator.kube.loop.handlers import (
    POLL_SECONDS,
    RECONNECT_SECONDS,
    RUN_EVENT_SECONDS,
    follow_changes,
    kopf_settings,
    register,
)
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.job_runs import JobRuns
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import Changes, StudyKey

from tests.unit.kube.builders import NOW
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.world import RUNTIME

KEY, OTHER = StudyKey("ml", "a"), StudyKey("ml", "b")
AWAY = StudyServerUnavailable("ConnectError")


class Feed:
    """Answers from a script, then waits forever; notes what it was asked and when."""

    def __init__(self, *script: Changes | Exception) -> None:
        self.script = list(script)
        self.asked: list[tuple[str | None, float, float]] = []

    async def changes(self, after: str | None, timeout: float) -> Changes:  # noqa: ASYNC109
        self.asked.append((after, timeout, asyncio.get_running_loop().time()))
        if not self.script:
            await asyncio.Event().wait()
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def follow(feed: Feed, queue: WorkQueue[StudyKey], seconds: float, *namespaces: str) -> None:
    task = asyncio.create_task(follow_changes(feed, queue, namespaces))  # type: ignore[arg-type]
    await asyncio.sleep(seconds)
    assert not task.done()
    task.cancel()


@pytest.mark.looptime
async def test_changes_become_keys() -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    feed = Feed(Changes(cursor="1", studies=[("ml", "a")]), Changes(cursor="2", studies=[]))
    await follow(feed, queue, 1)
    assert await queue.get() == KEY
    assert len(queue) == 1
    assert [after for after, _, _ in feed.asked] == [None, "1", "2"]


@pytest.mark.looptime
async def test_a_server_that_comes_back_is_heard_at_once() -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    for _ in range(10):
        queue.retry(OTHER)
    feed = Feed(Changes(cursor="1", studies=[]), AWAY, AWAY, Changes(cursor="9", studies=[("ml", "a")]))
    await follow(feed, queue, 2 * RECONNECT_SECONDS + 0.1)
    assert [(after, timeout) for after, timeout, _ in feed.asked] == [
        (None, POLL_SECONDS),
        ("1", POLL_SECONDS),
        ("1", 0),
        ("1", 0),
        ("9", POLL_SECONDS),
    ]
    assert {await queue.get(), await queue.get()} == {KEY, OTHER}, "studies in back-off are tried again"


@pytest.mark.looptime
async def test_studies_of_other_namespaces_are_others() -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    feed = Feed(Changes(cursor="1", studies=[("theirs", "a"), ("ml", "b")]))
    await follow(feed, queue, 1, "ml")
    assert await queue.get() == OTHER
    assert len(queue) == 1


async def emit(queue: WorkQueue[StudyKey], plural: str, **event: Any) -> None:
    """Call the handlers of a kind as kopf does."""
    registry = kopf.OperatorRegistry()
    register(registry, queue, JobRuns(FakeKube(), registry, lambda: RUNTIME, lambda: NOW))
    handlers = [h for h in registry._watching.get_all_handlers() if h.selector.any_name == plural]
    assert len(handlers) == 1
    await handlers[0].fn(**event)


@pytest.mark.looptime
async def test_a_study_that_changes_is_worked_on_at_once() -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    await emit(queue, "tuningstudies", namespace="ml", name="a")
    assert len(queue) == 1
    assert await queue.get() == KEY


@pytest.mark.looptime
@pytest.mark.parametrize("plural", ["jobs", "pods"])
async def test_changes_of_runs_are_collected_for_a_moment(plural: str, looptime: float) -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    await emit(queue, plural, namespace="ml", name="a-0-x7k2p", labels={"tuning.dev/study": "a"})
    await asyncio.sleep(RUN_EVENT_SECONDS / 2)
    await emit(queue, plural, namespace="ml", name="a-1-x7k2p", labels={"tuning.dev/study": "a"})
    assert len(queue) == 0
    assert await queue.get() == KEY
    assert looptime == RUN_EVENT_SECONDS, (
        "counted from the first, so that many changes never starve the study"
    )
    assert len(queue) == 1, "in work"


@pytest.mark.looptime
async def test_others_pods_are_ignored() -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    await emit(queue, "pods", namespace="ml", name="web", labels={})
    await asyncio.sleep(1)
    assert len(queue) == 0


def test_kopf_asks_for_our_objects_only() -> None:
    settings = kopf_settings()
    assert settings.peering.standalone
    assert settings.scanning.disabled
    selectors = settings.watching.label_selectors
    assert {selectors["batch", "v1", "jobs"], selectors["", "v1", "pods"]} == {"tuning.dev/study"}


def test_kopf_copies_no_objects() -> None:
    storage = kopf_settings().persistence.diffbase_storage
    body = kopf.Body({"spec": {"large": ["a", "template"]}})
    assert storage.build(body=body, extra_fields=None) == {}
    assert storage.fetch(body=body) is None
