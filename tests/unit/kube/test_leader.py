"""Leader election in virtual time: of several candidates one works, whatever happens to them."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from tuning_operator.kube.loop.leader import Election, LeadershipLost
from tuning_operator.kube.ports.kube_api import KubeError

from tests.unit.kube.fake_kube import FakeKube

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.looptime

LEASE = ("Lease", "tuning-system", "tuning-operator")
SECONDS, DEADLINE, RETRY = 15, 10, 2


@dataclass
class Connection:
    """A candidate's way to the API server."""

    kube: FakeKube
    away: bool = False
    """Whether no request gets there."""
    request_seconds: float = 0
    reply_seconds: float = 0

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> Any:
            await asyncio.sleep(self.request_seconds)
            if self.away:
                raise KubeError(0, "Unreachable", "the API server does not reply")
            reply = await getattr(self.kube, name)(*arguments)
            await asyncio.sleep(self.reply_seconds)
            return reply

        return call


@dataclass
class Candidates:
    kube: FakeKube = field(default_factory=FakeKube)
    working: list[str] = field(default_factory=list)
    connections: dict[str, Connection] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    def start(self, name: str, clock: timedelta = timedelta()) -> None:
        connection = self.connections[name] = Connection(self.kube)
        start = datetime(2026, 11, 26, tzinfo=UTC) + clock
        election = Election(
            connection,  # type: ignore[arg-type]
            "tuning-system/tuning-operator",
            name,
            lambda: start + timedelta(seconds=asyncio.get_running_loop().time()),
        )
        self.tasks[name] = asyncio.create_task(election.lead(lambda: self._work(name)))

    async def _work(self, name: str) -> None:
        assert not self.working, "one at a time"
        self.working.append(name)
        try:
            await asyncio.Event().wait()
        finally:
            self.working.remove(name)

    async def stop(self, name: str) -> None:
        """As SIGTERM does."""
        self.tasks[name].cancel()
        await asyncio.wait([self.tasks[name]])

    async def kill(self, name: str) -> None:
        """As kill -9 or the loss of its node does: nothing is released."""
        self.connections[name].away = True
        await self.stop(name)

    async def until(self, *working: str) -> float:
        """Wait until exactly these work; return how long it took."""
        start = asyncio.get_running_loop().time()
        async with asyncio.timeout(300):
            while self.working != list(working):  # noqa: ASYNC110  virtual time
                await asyncio.sleep(0.1)
        return asyncio.get_running_loop().time() - start

    @property
    def lease(self) -> dict[str, Any]:
        return self.kube.objects[LEASE]["spec"]


@pytest.fixture
async def candidates() -> AsyncIterator[Candidates]:
    candidates = Candidates()
    yield candidates
    for name, connection in candidates.connections.items():
        connection.request_seconds = connection.reply_seconds = 0
        await candidates.kill(name)


async def test_one_works_and_the_others_wait(candidates: Candidates) -> None:
    for name in "abc":
        candidates.start(name)
    await asyncio.sleep(0)
    await candidates.until("a")
    await asyncio.sleep(10 * SECONDS)
    assert candidates.working == ["a"]
    assert candidates.lease == {
        "holderIdentity": "a",
        "acquireTime": "2026-11-26T00:00:00.000000Z",
        "renewTime": "2026-11-26T00:02:30.000000Z",
        "leaseDurationSeconds": 15,
        "leaseTransitions": 0,
    }


async def test_one_that_stops_hands_over_at_once(candidates: Candidates) -> None:
    candidates.start("a")
    candidates.start("b")
    await candidates.until("a")
    await candidates.stop("a")
    assert candidates.lease["holderIdentity"] == ""
    assert await candidates.until("b") <= RETRY
    assert candidates.lease["leaseTransitions"] == 1


async def test_one_that_is_lost_is_replaced_when_its_lease_expires(candidates: Candidates) -> None:
    candidates.start("a")
    candidates.start("b")
    await candidates.until("a")
    await asyncio.sleep(100)
    await candidates.kill("a")
    assert SECONDS - RETRY <= await candidates.until("b") <= SECONDS + 2 * RETRY


async def test_one_that_is_restarted_under_its_name_continues_at_once(candidates: Candidates) -> None:
    """A container that crashed, in the same pod."""
    candidates.start("a")
    candidates.start("b")
    await candidates.until("a")
    await candidates.kill("a")
    candidates.start("a")
    assert await candidates.until("a") < RETRY
    assert candidates.lease["leaseTransitions"] == 0


@pytest.mark.parametrize("how", ["away", "request_seconds", "reply_seconds"])
async def test_a_leader_that_cannot_renew_stops_before_another_takes_over(
    candidates: Candidates, how: str
) -> None:
    """Also if the API server renews the Lease, and only its reply is late."""
    candidates.start("a")
    candidates.start("b")
    await candidates.until("a")
    await asyncio.sleep(3 * RETRY - 0.05)
    setattr(candidates.connections["a"], how, 1000)
    assert DEADLINE - RETRY <= await candidates.until() <= DEADLINE
    with pytest.raises(LeadershipLost, match="could not be renewed for 10 s"):
        await candidates.tasks["a"]
    assert await candidates.until("b") >= SECONDS - DEADLINE - 1


async def test_a_late_reply_does_not_prolong_the_lease(candidates: Candidates) -> None:
    candidates.start("a")
    candidates.start("b")
    await candidates.until("a")
    await asyncio.sleep(2 * RETRY - 0.15)
    connection = candidates.connections["a"]
    connection.reply_seconds = DEADLINE - RETRY - 1
    await asyncio.sleep(1)  # the Lease is renewed
    connection.away = True
    assert await candidates.until() < DEADLINE
    assert await candidates.until("b") >= SECONDS - DEADLINE - 1


async def test_an_api_server_that_takes_seconds_changes_nothing(candidates: Candidates) -> None:
    for name in "ab":
        candidates.start(name)
        candidates.connections[name].request_seconds = candidates.connections[name].reply_seconds = 1
    await candidates.until("a")
    await asyncio.sleep(10 * SECONDS)
    assert candidates.working == ["a"]


async def test_an_outage_shorter_than_the_deadline_changes_nothing(candidates: Candidates) -> None:
    candidates.start("a")
    candidates.start("b")
    await candidates.until("a")
    for connection in candidates.connections.values():
        connection.away = True
    await asyncio.sleep(DEADLINE - RETRY - 1)
    for connection in candidates.connections.values():
        connection.away = False
    await asyncio.sleep(10 * SECONDS)
    assert candidates.working == ["a"]


@pytest.mark.parametrize("hours", [-10, 10])
async def test_clocks_may_differ(candidates: Candidates, hours: int) -> None:
    candidates.start("a")
    candidates.start("b", timedelta(hours=hours))
    await candidates.until("a")
    await asyncio.sleep(10 * SECONDS)
    assert candidates.working == ["a"]
    await candidates.kill("a")
    assert SECONDS - RETRY <= await candidates.until("b") <= SECONDS + 2 * RETRY


async def test_a_leader_that_finds_another_holder_stops(candidates: Candidates) -> None:
    """For example because someone has edited the Lease."""
    candidates.start("a")
    await candidates.until("a")
    candidates.kube.put(
        {**candidates.kube.objects[LEASE], "spec": {**candidates.lease, "holderIdentity": "b"}}
    )
    await candidates.until()
    with pytest.raises(LeadershipLost, match="b is the leader now"):
        await candidates.tasks["a"]
    assert candidates.lease["holderIdentity"] == "b", "it is not released"


async def test_a_lease_that_was_deleted_is_created_again(candidates: Candidates) -> None:
    candidates.start("a")
    await candidates.until("a")
    candidates.kube.remove(*LEASE)
    await asyncio.sleep(3 * RETRY)
    assert candidates.working == ["a"]
    assert candidates.lease["holderIdentity"] == "a"


async def test_the_end_of_the_work_releases_the_lease() -> None:
    async def fails() -> None:
        raise ValueError("a part failed")

    kube = FakeKube()
    with pytest.raises(ValueError, match="a part failed"):
        await Election(kube, "tuning-system/tuning-operator", "a", lambda: datetime.now(UTC)).lead(fails)
    assert kube.objects[LEASE]["spec"]["holderIdentity"] == ""


@pytest.mark.parametrize("seed", range(30))
async def test_whatever_happens_one_works_at_a_time_and_one_works_in_the_end(
    candidates: Candidates, seed: int
) -> None:
    """Outages, slow requests and replies, kills and restarts; `_work` checks that nobody else works."""
    chance = random.Random(seed)
    for name in "abc":
        candidates.start(name, timedelta(seconds=chance.uniform(-1000, 1000)))
    for _ in range(30):
        await asyncio.sleep(chance.uniform(0, 12))
        name = chance.choice("abc")
        connection = candidates.connections[name]
        connection.away = chance.random() < 0.3
        connection.request_seconds = chance.choice([0, 0, 0, 0.5, 3, 11])
        connection.reply_seconds = chance.choice([0, 0, 0, 0.5, 3, 11])
        if end := chance.choice([None, None, None, candidates.stop, candidates.kill]):
            await end(name)
        for name, task in candidates.tasks.copy().items():
            if task.done():
                if not task.cancelled():
                    assert isinstance(task.exception(), LeadershipLost)
                candidates.start(name)
    for connection in candidates.connections.values():
        connection.away, connection.request_seconds, connection.reply_seconds = False, 0, 0
    await asyncio.sleep(3 * SECONDS)
    assert len(candidates.working) == 1
    assert candidates.lease["holderIdentity"] == candidates.working[0]
