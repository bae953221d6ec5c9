"""Carries out what was decided. Every action may be repeated: what exists or is gone already is done."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from tuning_operator.kube.plan.actions import Action, Ask, Begin, Finish, Start, Stop, Tell
from tuning_operator.kube.ports.runs import RunRefused, Runs, RunsUnavailable
from tuning_operator.kube.ports.study_server import StudyServer, StudyServerUnavailable
from tuning_operator.protocol import StudyKey, StudySummary
from tuning_operator.resource.study import TuningStudy

CONCURRENCY = 16
"""Actions at a time of one study: few beside what the API server accepts at a time."""

Expected = RunRefused | RunsUnavailable | StudyServerUnavailable
"""What an action can fail with."""


@dataclass
class Outcome:
    """The outcome of a round of actions."""

    summary: StudySummary | None = None
    """The record after an Ask or a Begin."""
    errors: list[Expected] = field(default_factory=list)


class Actor:
    """Carries out actions on the study server and where work runs."""

    def __init__(self, runs: Runs, server: StudyServer) -> None:
        self._runs, self._server = runs, server

    async def act(self, key: StudyKey, study: TuningStudy, actions: Sequence[Action]) -> Outcome:
        """Carry out the actions, first those that free resources; each is tried, whatever the others do.

        The next trials are asked for while the last ones are started.

        Raises:
            ExceptionGroup: errors that no action should fail with, after the other actions.
        """
        outcome = Outcome()
        unexpected: list[Exception] = []
        limit = asyncio.Semaphore(CONCURRENCY)

        async def attempt(action: Action) -> None:
            async with limit:
                try:
                    await self._do(key, study, action, outcome)
                except (RunRefused, RunsUnavailable, StudyServerUnavailable) as error:
                    outcome.errors.append(error)
                except Exception as error:  # noqa: BLE001
                    unexpected.append(error)

        starts_last = sorted(actions, key=lambda action: isinstance(action, Start))
        for kinds in (Tell, Stop | Finish, Start | Ask | Begin):
            async with asyncio.TaskGroup() as tasks:
                for action in starts_last:
                    if isinstance(action, kinds):
                        tasks.create_task(attempt(action))
        if unexpected:
            raise ExceptionGroup("unexpected errors", unexpected)
        return outcome

    async def _do(self, key: StudyKey, study: TuningStudy, action: Action, outcome: Outcome) -> None:
        match action:
            case Tell(work, request):
                await self._server.tell(key, work, request)
            case Stop(work):
                await self._runs.stop(key, work)
            case Finish(work, again):
                await self._runs.finish(key, work, again=again)
            case Start(work):
                await self._runs.start(study, work)
            case Ask(request):
                outcome.summary = await self._server.ask(key, request)
            case Begin(request):
                outcome.summary = await self._server.begin_refit(key, request)
