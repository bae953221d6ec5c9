"""The queue, in virtual time: looptime makes the event loop's clock jump."""

from __future__ import annotations

import asyncio

import pytest
from tuning_operator.kube.loop.workqueue import LAST_BACKOFF, WorkQueue

pytestmark = pytest.mark.looptime


async def got(queue: WorkQueue[str], seconds: float = 1000) -> str | None:
    try:
        return await asyncio.wait_for(queue.get(), seconds)
    except TimeoutError:
        return None


async def test_a_key_is_in_the_queue_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert len(queue) == 2
    assert [await got(queue), await got(queue), await got(queue, 1)] == ["a", "b", None]


async def test_a_key_is_never_with_two_workers() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await got(queue) == "a"
    queue.add("a")
    assert await got(queue, 5) is None, "it is with a worker"
    queue.done("a")
    assert await got(queue, 5) == "a", "what happened meanwhile is not lost"
    queue.done("a")
    assert await got(queue, 5) is None


async def test_a_waiting_worker_wakes(looptime: float) -> None:
    queue: WorkQueue[str] = WorkQueue()
    asyncio.get_running_loop().call_later(7, queue.add, "a")
    assert await got(queue) == "a"
    assert looptime == 7


async def test_delays_and_the_earliest_holds(looptime: float) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 10)
    queue.add_after("a", 30)
    assert await got(queue) == "a"
    assert looptime == 10
    queue.done("a")
    assert await got(queue, 100) is None, "the others are off"


async def test_a_look_now_replaces_the_look_planned(looptime: float) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add("a")
    assert await got(queue) == "a"
    queue.done("a")
    queue.add_after("a", 90)
    assert await got(queue) == "a"
    assert looptime == 90


async def test_a_delay_during_the_work_counts() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await queue.get()
    queue.add_after("a", 0)
    queue.done("a")
    assert await got(queue, 1) == "a"


async def work(queue: WorkQueue[str], seconds: float) -> None:
    assert await got(queue) == "a"
    await asyncio.sleep(seconds)
    queue.done("a")


async def test_work_takes_no_more_than_its_share(looptime: float) -> None:
    """However many changes come, and whether they come during the work or after it."""
    queue: WorkQueue[str] = WorkQueue()
    queue.add_within("a", 0.2)
    await work(queue, 0.1)
    assert looptime == pytest.approx(0.1), "the first work waits for nothing"
    for _ in range(9):
        queue.add_within("a", 0.2)
    assert await got(queue) == "a"
    assert looptime == pytest.approx(0.5)
    queue.add_within("a", 0.2)
    queue.add_within("a", 0.5)
    queue.add_within("a", 0.2)
    await asyncio.sleep(0.1)
    queue.done("a")
    assert await got(queue) == "a"
    assert looptime == pytest.approx(0.7), "the largest share counts"
    queue.done("a")
    await asyncio.sleep(10)
    queue.add_within("a", 0.2)
    await work(queue, 0)
    assert looptime == pytest.approx(10.7), "the pause is over"


async def test_a_pause_is_no_longer_than_a_second_and_no_shorter_than_the_delay(looptime: float) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    await work(queue, 60)
    queue.add_within("a", 0.1)
    await work(queue, 0)
    assert looptime == 61
    queue.add_within("a", 0.1, 5)
    await work(queue, 0)
    assert looptime == 66


async def test_a_forgotten_key_does_not_pause(looptime: float) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await got(queue) == "a"
    await asyncio.sleep(1)
    queue.forget("a")
    queue.done("a")
    queue.add_within("a", 0.1)
    assert await got(queue) == "a"
    assert looptime == 1


async def test_back_off_doubles_up_to_a_limit_and_starts_again() -> None:
    queue: WorkQueue[str] = WorkQueue()
    delays = []
    for _ in range(12):
        delays.append(queue.retry("a"))
        assert await got(queue) == "a"
        queue.done("a")
    assert delays[:4] == [0.25, 0.5, 1.0, 2.0]
    assert delays[-1] == LAST_BACKOFF
    assert queue.retry("b") == 0.25, "each key has its own"
    queue.succeeded("a")
    assert queue.retry("a") == 0.25


async def test_events_during_a_back_off_do_not_prolong_it(looptime: float) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.retry("a")
    for _ in range(20):
        queue.add("a")
        await queue.get()
        await asyncio.sleep(0.01)
        queue.retry("a")
        queue.done("a")
    assert await got(queue) == "a"
    assert looptime == pytest.approx(0.25)
    assert queue.retry("a") == 0.5


async def test_retry_now_ends_all_back_offs(looptime: float) -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(9):
        queue.retry("a")
        await got(queue)
        queue.done("a")
    queue.retry("a")
    queue.add_after("calm", 500)
    before = float(looptime)
    queue.retry_now()
    assert await got(queue, 1) == "a"
    assert looptime == before
    assert await got(queue, 100) is None, "others are left alone"


async def test_a_forgotten_key_does_not_come_back() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 5)
    queue.forget("a")
    assert await got(queue, 100) is None


async def test_many_workers_share_the_keys() -> None:
    queue: WorkQueue[str] = WorkQueue()
    busy: set[str] = set()
    done: list[str] = []

    async def worker() -> None:
        while True:
            key = await queue.get()
            assert key not in busy
            busy.add(key)
            await asyncio.sleep(1)
            busy.discard(key)
            done.append(key)
            queue.done(key)

    workers = [asyncio.create_task(worker()) for _ in range(3)]
    for _ in range(5):
        for key in "abcd":
            queue.add(key)
        await asyncio.sleep(0.3)
    await asyncio.sleep(20)
    assert set(done) == set("abcd")
    assert len(done) >= 8, "added while worked on: once more each"
    assert len(queue) == 0
    for task in workers:
        task.cancel()


async def test_the_age_grows_only_while_keys_wait_and_none_is_done() -> None:
    queue: WorkQueue[str] = WorkQueue()
    assert queue.age() == 0
    await asyncio.sleep(500)
    assert queue.age() == 0, "nothing to do"
    queue.add("a")
    await asyncio.sleep(300)
    queue.add("b")
    assert (queue.age(), queue.age()) == (300, 300), "reading it changes nothing"
    assert await got(queue) == "a"
    await asyncio.sleep(10)
    assert queue.age() == 310, "with a worker is not done"
    queue.done("a")
    assert queue.age() == 0
    await asyncio.sleep(7)
    assert queue.age() == 7, "b waits"
    assert await got(queue) == "b"
    queue.done("b")
    queue.retry("b")
    await asyncio.sleep(0.2)
    assert queue.age() == 0, "a back-off is no work"
