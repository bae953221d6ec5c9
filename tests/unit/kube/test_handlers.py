"""What happens becomes keys: the change feed's side (kopf's is tested on a real API server)."""

from __future__ import annotations

import asyncio

import pytest
from tuning_operator.kube.loop.handlers import POLL_SECONDS, RECONNECT_SECONDS, follow_changes, kopf_settings
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import Changes, StudyKey

KEY, OTHER = StudyKey("ml", "a"), StudyKey("ml", "b")
AWAY = StudyServerUnavailable("ConnectError")


class Feed:
    """Answers from a script, then waits for ever; notes what it was asked and when."""

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


def test_kopf_asks_for_our_objects_only() -> None:
    settings = kopf_settings()
    assert settings.peering.standalone
    assert settings.scanning.disabled
    selectors = settings.watching.label_selectors
    assert {selectors["batch", "v1", "jobs"], selectors["", "v1", "pods"]} == {"tuning.dev/study"}
