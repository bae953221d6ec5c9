"""What the operator relies on in Runs: one suite for every place where work runs."""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from tuning_operator.kube.plan.work import Refit, Trial, Work, Worker
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.study import RefitSpec, TuningStudy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tuning_operator.kube.plan.observation import Run
    from tuning_operator.kube.ports.runs import Runs

FIRST, SECOND = Trial(0), Trial(1)
WORKER = Worker(0)
REFIT = Refit.of(RefitSpec(), 0)
SECONDS = 240
"""How long a test waits for what it expects."""


@contextlib.asynccontextmanager
async def watching(runs: Runs, changed: Callable[[StudyKey], None]) -> AsyncIterator[None]:
    """Have `changed` called whenever a run changes."""
    watch = asyncio.create_task(runs.watch(changed))
    try:
        yield
        assert not watch.done()
    finally:
        watch.cancel()
        await asyncio.gather(watch, return_exceptions=True)


class RunsContract(ABC):
    """Subclasses give the fixtures `runs` and `study`, a study with a refit, and the methods below."""

    @abstractmethod
    async def begin(self, study: TuningStudy, work: Work) -> None:
        """Have the program of the work's run start."""

    @abstractmethod
    async def end(self, study: TuningStudy, work: Work, exit_code: int) -> None:
        """Have the program of the work's run exit."""

    async def expect(
        self, runs: Runs, study: TuningStudy, unfinished: set[Work], expected: dict[Work, str]
    ) -> dict[Work, Run]:
        """Wait until there are these runs in these states; return them."""
        found: dict[Work, Run] = {}
        async with asyncio.timeout(SECONDS):
            while True:
                found = dict(await runs.list_runs(study, unfinished))
                if {work: run.state for work, run in found.items()} == expected:
                    return found
                await asyncio.sleep(0.05)

    async def test_nothing_runs_at_first(self, runs: Runs, study: TuningStudy) -> None:
        assert await runs.list_runs(study, {FIRST, REFIT}) == {}

    async def test_started_twice_it_runs_once(self, runs: Runs, study: TuningStudy) -> None:
        await runs.start(study, FIRST)
        await asyncio.gather(*(runs.start(study, FIRST) for _ in range(3)))
        await self.expect(runs, study, {FIRST}, {FIRST: "starting"})

    async def test_from_its_start_to_its_end_without_a_result(self, runs: Runs, study: TuningStudy) -> None:
        await runs.start(study, FIRST)
        await self.begin(study, FIRST)
        await self.expect(runs, study, {FIRST}, {FIRST: "running"})
        await self.end(study, FIRST, 3)
        found = await self.expect(runs, study, {FIRST}, {FIRST: "ended"})
        diagnosis = found[FIRST].diagnosis
        assert diagnosis
        assert diagnosis.failure.category == "ExitCode"
        assert "code 3" in diagnosis.failure.message

    async def test_success_without_a_result_is_seen_while_one_is_expected(
        self, runs: Runs, study: TuningStudy
    ) -> None:
        await runs.start(study, FIRST)
        await self.begin(study, FIRST)
        await self.end(study, FIRST, 0)
        found = await self.expect(runs, study, {FIRST}, {FIRST: "ended"})
        diagnosis = found[FIRST].diagnosis
        assert diagnosis
        assert diagnosis.failure.category == "NoResult"
        assert await runs.list_runs(study, set()) == {}, "its result is known: it is of no interest any more"

    async def test_a_run_that_outlives_its_work_is_seen(self, runs: Runs, study: TuningStudy) -> None:
        for work in (FIRST, SECOND):
            await runs.start(study, work)
            await self.begin(study, work)
        await self.expect(runs, study, {SECOND}, {FIRST: "running", SECOND: "running"})

    async def test_stop(self, runs: Runs, study: TuningStudy) -> None:
        key = StudyKey(study.metadata["namespace"], study.metadata["name"])
        await runs.stop(key, FIRST)
        await runs.start(study, FIRST)
        await runs.start(study, SECOND)
        await runs.stop(key, FIRST)
        await runs.stop(key, FIRST)
        await self.expect(runs, study, {FIRST, SECOND}, {SECOND: "starting"})
        await runs.start(study, FIRST)
        await self.expect(runs, study, {FIRST, SECOND}, {FIRST: "starting", SECOND: "starting"})

    async def test_a_refit_replaces_the_one_before_it(self, runs: Runs, study: TuningStudy) -> None:
        before = Refit.of(RefitSpec(retries=7), 0)
        await runs.start(study, before)
        await self.expect(runs, study, {REFIT}, {before: "starting"})
        await self.begin(study, before)
        await self.end(study, before, 0)
        await self.expect(runs, study, {REFIT}, {before: "ended"})
        await runs.stop(StudyKey(study.metadata["namespace"], study.metadata["name"]), before)
        await self.expect(runs, study, {REFIT}, {})
        await runs.start(study, REFIT)
        await self.expect(runs, study, {REFIT}, {REFIT: "starting"})

    async def test_a_worker_that_has_ended_is_seen(self, runs: Runs, study: TuningStudy) -> None:
        """Whatever it has done: it is replaced."""
        await runs.start(study, WORKER)
        await self.begin(study, WORKER)
        await self.expect(runs, study, set(), {WORKER: "running"})
        await self.end(study, WORKER, 3)
        found = await self.expect(runs, study, set(), {WORKER: "ended"})
        diagnosis = found[WORKER].diagnosis
        assert diagnosis
        assert diagnosis.failure.category == "ExitCode"

    async def test_other_studies_are_others(self, runs: Runs, study: TuningStudy) -> None:
        other = study.model_copy(update={"metadata": {**study.metadata, "name": "mnist-0"}})
        await runs.start(other, FIRST)
        assert await runs.list_runs(study, {FIRST}) == {}

    async def test_changes_are_reported(self, runs: Runs, study: TuningStudy) -> None:
        changed: asyncio.Queue[StudyKey] = asyncio.Queue()
        key = StudyKey(study.metadata["namespace"], study.metadata["name"])
        async with watching(runs, changed.put_nowait), asyncio.timeout(SECONDS):
            await runs.start(study, FIRST)
            while await changed.get() != key:
                pass  # another study's
            await self.expect(runs, study, {FIRST}, {FIRST: "starting"})
            while not changed.empty():
                changed.get_nowait()
            await runs.stop(key, FIRST)
            while await changed.get() != key:
                pass
