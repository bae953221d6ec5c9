"""What happens becomes keys in the queue (tests/api has kopf on a real API server)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import kopf
import pytest
from tuning_operator.kube.loop.changes import (
    NAMESPACE_SECONDS,
    POLL_SECONDS,
    RECONNECT_SECONDS,
    RUN_EVENT_SECONDS,
    follow_changes,
    follow_namespaces,
    follow_runs,
)
from tuning_operator.kube.loop.handlers import register
from tuning_operator.kube.loop.informer import kopf_settings
from tuning_operator.kube.loop.workqueue import WorkQueue
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import Changes, StudyKey

from tests.unit.kube.world import World

if TYPE_CHECKING:
    from collections.abc import Callable

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
    for _ in range(6):
        queue.retry(OTHER)
        assert await queue.get() == OTHER
        queue.done(OTHER)
    assert queue.retry(OTHER) > 3 * RECONNECT_SECONDS
    feed = Feed(Changes(cursor="1", studies=[]), AWAY, AWAY, Changes(cursor="9", studies=[("ml", "a")]))
    await follow(feed, queue, 2 * RECONNECT_SECONDS + 0.1)
    assert [(after, timeout) for after, timeout, _ in feed.asked] == [
        (None, POLL_SECONDS),
        ("1", POLL_SECONDS),
        ("1", 0),
        ("1", 0),
        ("9", POLL_SECONDS),
    ]
    assert len(queue) == 2
    assert {await queue.get(), await queue.get()} == {KEY, OTHER}, "studies in back-off are tried again"


@pytest.mark.looptime
async def test_studies_hear_of_an_outage_within_seconds() -> None:
    """Of the server, and of its database; a short interruption is not worth a pass over every study."""
    queue: WorkQueue[StudyKey] = WorkQueue()
    queue.add_after(KEY, 180)
    without_database = Changes(cursor="1", studies=[], unavailable="the database does not answer")
    await follow(Feed(AWAY, Changes(cursor="1", studies=[])), queue, RECONNECT_SECONDS + 0.1)
    assert len(queue) == 0
    await follow(Feed(without_database, without_database), queue, RECONNECT_SECONDS + 0.1)
    assert await queue.get() == KEY


@pytest.mark.looptime
async def test_studies_of_other_namespaces_are_others() -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    feed = Feed(Changes(cursor="1", studies=[("theirs", "a"), ("ml", "b")]))
    await follow(feed, queue, 1, "ml")
    assert await queue.get() == OTHER
    assert len(queue) == 1


@pytest.mark.looptime
async def test_a_study_that_changes_is_worked_on_at_once() -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    registry = kopf.OperatorRegistry()
    register(registry, queue)
    [handler] = registry._watching.get_all_handlers()
    assert handler.selector.any_name == "tuningstudies"
    await handler.fn(namespace="ml", name="a")
    assert len(queue) == 1
    assert await queue.get() == KEY


class TwoChanges:
    """Runs of which two change, one shortly after the other."""

    async def watch(self, changed: Callable[[StudyKey], None]) -> None:
        changed(KEY)
        await asyncio.sleep(RUN_EVENT_SECONDS / 2)
        changed(KEY)
        await asyncio.Event().wait()


@pytest.mark.looptime
async def test_changes_of_runs_are_collected_for_a_moment(looptime: float) -> None:
    queue: WorkQueue[StudyKey] = WorkQueue()
    task = asyncio.create_task(follow_runs(TwoChanges(), queue))  # type: ignore[arg-type]
    await asyncio.sleep(RUN_EVENT_SECONDS / 2)
    assert len(queue) == 0
    assert await queue.get() == KEY
    assert looptime == RUN_EVENT_SECONDS, (
        "counted from the first, so that many changes never starve the study"
    )
    assert len(queue) == 1, "in work"
    task.cancel()


def test_kopf_asks_for_nothing_else() -> None:
    assert kopf_settings().peering.standalone


def test_kopf_copies_no_objects() -> None:
    storage = kopf_settings().persistence.diffbase_storage
    body = kopf.Body({"spec": {"large": ["a", "template"]}})
    assert storage.build(body=body, extra_fields=None) == {}
    assert storage.fetch(body=body) is None


@pytest.mark.looptime
async def test_namespaces_that_are_deleted_after_their_studies_are_reported() -> None:
    """Also when another one of the same name exists by then."""
    world = World()
    reported = world.server.namespaces_forgotten
    for namespaces, metadata, expected in (
        ((), {"uid": "namespace-uid"}, []),
        ((), {"uid": "of a later one"}, [("ml", "namespace-uid")]),
        ((), {}, [("ml", "namespace-uid")]),
        (("vision",), {}, []),
    ):
        world.kube.namespace = metadata
        reported.clear()
        task = asyncio.create_task(follow_namespaces(world.kube, world.server, namespaces))
        await asyncio.sleep(NAMESPACE_SECONDS / 2)
        task.cancel()
        assert reported == expected
