"""Carrying out what was decided: no action keeps another from being tried."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from tuning_operator.kube.plan.actions import Start, Stop
from tuning_operator.kube.plan.work import Trial
from tuning_operator.kube.ports.act import Actor
from tuning_operator.kube.ports.runs import RunsUnavailable

from tests.unit.kube.builders import study
from tests.unit.kube.model_server import ModelServer
from tests.unit.kube.world import KEY

if TYPE_CHECKING:
    from tuning_operator.kube.plan.work import Work


class Runs:
    """Fails at once for some trials; the others take a few turns of the event loop."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        self._failures = failures
        self.done: list[tuple[str, Work]] = []

    async def start(self, _: Any, work: Work) -> None:
        await self._do("start", work)

    async def stop(self, _: Any, work: Work) -> None:
        await self._do("stop", work)

    async def _do(self, verb: str, work: Work) -> None:
        if isinstance(work, Trial) and work.number in self._failures:
            raise self._failures[work.number]
        for _ in range(5):
            await asyncio.sleep(0)
        self.done.append((verb, work))


ACTIONS = (Stop(Trial(0)), Stop(Trial(1)), Start(Trial(2)), Start(Trial(3)), Start(Trial(4)))


@pytest.mark.parametrize("broken", [0, 2])
async def test_unexpected_errors_are_raised_after_the_other_actions(broken: int) -> None:
    runs = Runs({broken: ValueError("a defect"), 3: RunsUnavailable("away")})
    with pytest.raises(ExceptionGroup) as raised:
        await Actor(cast("Any", runs), ModelServer()).act(KEY, study(), ACTIONS)
    assert [str(error) for error in raised.value.exceptions] == ["a defect"]
    others = [("stop", Trial(0)), ("stop", Trial(1)), ("start", Trial(2)), ("start", Trial(4))]
    assert runs.done == [(verb, work) for verb, work in others if work.number != broken]


async def test_expected_errors_are_collected() -> None:
    away = RunsUnavailable("away")
    runs = Runs({0: away, 3: away})
    outcome = await Actor(cast("Any", runs), ModelServer()).act(KEY, study(), ACTIONS)
    assert outcome.errors == [away, away]
    assert runs.done == [("stop", Trial(1)), ("start", Trial(2)), ("start", Trial(4))]
