"""The change feed: no change is lost or repeated, and nobody waits for one that has happened."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tuning_operator.protocol import StudyKey
from tuning_operator.studies.study import feed as module
from tuning_operator.studies.study.feed import ChangeFeed

from tests.support.memory import mentions

A, B, C = StudyKey("ml", "a"), StudyKey("ml", "b"), StudyKey("other", "c")
LONG = 30.0
"""Seconds: a test that waits for this exceeds its time limit."""


@pytest.fixture
def unsettled() -> list[StudyKey]:
    return [A, C]


@pytest.fixture
def feed(unsettled: list[StudyKey]) -> ChangeFeed:
    async def now() -> list[StudyKey]:
        return unsettled

    return ChangeFeed(now)


async def cursor_of(feed: ChangeFeed) -> str:
    return (await feed.after(None, 0)).cursor


@pytest.mark.parametrize("cursor", [None, "", "nonsense", "0.0", "12345678.5", "12345678."])
async def test_an_unknown_cursor_gets_all_unsettled_studies_at_once(
    feed: ChangeFeed, cursor: str | None
) -> None:
    changes = await feed.after(cursor, LONG)
    assert changes.studies == [A, C]
    assert (await feed.after(changes.cursor, 0)).studies == []


async def test_a_study_that_changed_often_is_named_once(feed: ChangeFeed) -> None:
    cursor = await cursor_of(feed)
    for key in (A, B, A, A):
        feed.mark(key)
    changes = await feed.after(cursor, LONG)
    assert changes.studies == [B, A]
    assert (await feed.after(changes.cursor, 0)).studies == []


async def test_the_same_cursor_gets_the_same_again(feed: ChangeFeed) -> None:
    """A reply may be lost: the client asks with its old cursor then."""
    cursor = await cursor_of(feed)
    feed.mark(B)
    assert await feed.after(cursor, LONG) == await feed.after(cursor, LONG)


async def test_studies_that_changed_long_ago_are_dropped(
    feed: ChangeFeed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that runs for months sees many; a cursor from before such a change is no longer known."""
    monkeypatch.setattr(module, "MOST_STUDIES", 2)
    before = await cursor_of(feed)
    feed.mark(B)
    after_b = await cursor_of(feed)
    for _ in range(3):
        for key in (StudyKey("ml", "d"), StudyKey("ml", "e")):
            feed.mark(key)
    assert not mentions(feed, "b")
    assert (await feed.after(before, LONG)).studies == [A, C], "all that may need attention"
    changes = await feed.after(after_b, LONG)
    assert changes.studies == [StudyKey("ml", "d"), StudyKey("ml", "e")]
    assert (await feed.after(changes.cursor, 0)).studies == []


async def test_all_who_wait_wake_up(feed: ChangeFeed) -> None:
    cursor = await cursor_of(feed)
    waiting = [asyncio.create_task(feed.after(cursor, LONG)) for _ in range(3)]
    await asyncio.sleep(0)
    feed.mark(B)
    assert [(await task).studies for task in waiting] == [[B], [B], [B]]


async def test_waiting_ends_in_time(feed: ChangeFeed) -> None:
    cursor = await cursor_of(feed)
    changes = await feed.after(cursor, 0.01)
    assert (changes.studies, changes.cursor) == ([], cursor)


async def test_a_client_that_went_away_does_no_harm(feed: ChangeFeed) -> None:
    cursor = await cursor_of(feed)
    gone = asyncio.create_task(feed.after(cursor, LONG))
    await asyncio.sleep(0)
    gone.cancel()
    feed.mark(B)
    assert (await feed.after(cursor, LONG)).studies == [B]


async def test_closing_answers_all_at_once(feed: ChangeFeed) -> None:
    cursor = await cursor_of(feed)
    waiting = asyncio.create_task(feed.after(cursor, LONG))
    await asyncio.sleep(0)
    feed.close()
    assert (await waiting).studies == []
    assert (await feed.after(cursor, LONG)).studies == []


async def test_a_change_while_the_record_is_read_is_in_the_next_reply() -> None:
    async def now() -> list[StudyKey]:
        feed.mark(B)
        return []

    feed = ChangeFeed(now)
    first = await feed.after(None, LONG)
    assert (await feed.after(first.cursor, LONG)).studies == [B]


@given(st.lists(st.sampled_from([A, B, C, None]), max_size=40))
def test_a_follower_learns_of_every_change(events: list[StudyKey | None]) -> None:
    """None: the follower asks for what changed since it last asked."""

    async def follow() -> None:
        async def nothing() -> list[StudyKey]:
            return []

        feed = ChangeFeed(nothing)
        cursor, due = (await feed.after(None, 0)).cursor, set[StudyKey]()
        for event in [*events, None]:
            if event is not None:
                feed.mark(event)
                due.add(event)
                continue
            changes = await feed.after(cursor, 0)
            assert set(changes.studies) == due
            cursor, due = changes.cursor, set()

    asyncio.run(follow())
