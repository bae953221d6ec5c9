"""One study, served: trials are asked for, reported on and ended; each reply follows the durable record."""

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import (
    AskRequest,
    AttributesRequest,
    Counts,
    Failure,
    StudyDefinition,
    StudyKey,
    StudySummary,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
)
from tuning_operator.studies.definition.samplers import build_pruner, build_sampler
from tuning_operator.studies.errors import unknown_study, unknown_trial
from tuning_operator.studies.pruning import Pruning, make_pruning
from tuning_operator.studies.pruning.base import OptunaPruning
from tuning_operator.studies.storage.base import Writes
from tuning_operator.studies.study import checks
from tuning_operator.studies.study.records import PRUNE_REQUESTED, record_of, view_of
from tuning_operator.studies.study.refit import Refit
from tuning_operator.studies.study.results import Result, read_result
from tuning_operator.studies.study.scoreboard import Scoreboard
from tuning_operator.studies.study.served_study import CONSTRAINT, ServedStudy, id_of
from tuning_operator.studies.study.surroundings import Surroundings
from tuning_operator.studies.study.tuner import Tuner

LARGEST_ASK = 16
"""Trials that one request may start, so that none takes long."""

P = ParamSpec("P")
T = TypeVar("T")


class StudyEngine:
    """Serves one study. Methods run on the event loop; Optuna's sampling in threads, one at a time.

    Every method may raise StudyError, and TimeoutError when the database is away.
    """

    def __init__(
        self, key: StudyKey, study: ServedStudy, definition: StudyDefinition, surroundings: Surroundings
    ) -> None:
        self.key = key
        self.study = study
        self.definition = definition
        self.gone = False
        self.refit = Refit(key, study, surroundings)
        self._surroundings = surroundings
        self._store = surroundings.store
        self._executor = surroundings.executor
        self._feed = surroundings.feed
        self._lock = asyncio.Lock()
        self._tuner = Tuner(study, definition)
        self._board = Scoreboard(study.directions)
        self._pruning: Pruning = OptunaPruning(study.pruner, study)

    async def load(self) -> None:
        """Take in what the record holds."""
        async with self._lock:
            await self._in_thread(self._recount)
            for number in self._board.running:
                await self._in_thread(self._tuner.resume, number)
                self._note(self.study.frozen(number))
        await self._settle()

    async def redefine(self, definition: StudyDefinition) -> None:
        """Go on with another definition; a sampler that stays the same keeps its state."""
        async with self._lock:
            if definition.sampler != self.definition.sampler:
                self.study.sampler = build_sampler(definition, self.study.get_trials(deepcopy=False))
            if definition.pruner != self.definition.pruner:
                self.study.pruner = build_pruner(definition)
                await self._in_thread(self._recount)
            self.definition = definition
            self._tuner.definition = definition

    @property
    def counts(self) -> Counts:
        """Trials by state."""
        return self._board.counts

    def summary(self) -> StudySummary:
        """Return how the study stands; costs no more than its running trials."""
        running = [self.study.frozen(number) for number in self._board.running]
        board = self._board.summary(running, exhausted=self.study.exhausted)
        return board.model_copy(update={"refit": self.refit.record})

    async def pick_up(self) -> None:
        """Take in what others wrote to the record: trials enqueued from the dashboard or by plain Optuna."""
        try:
            await self._in_thread(self._store.refresh, self.study.study_id)
        except KeyError:
            self.gone = True
            raise unknown_study(*self.key) from None
        async with self._lock:
            trials = self.study.get_trials(deepcopy=False)
            for number in [*self._board.unfinished, *range(self._board.total, len(trials))]:
                self._note(trials[number])

    async def ask(self, request: AskRequest) -> StudySummary:
        """Start trials until as many run as wanted, at most 16; return how the study stands then."""
        self._check_here()
        await self.pick_up()
        writes: list[Writes] = []
        while len(writes) < LARGEST_ASK and await self._start_one(request, writes):
            pass
        await self._settle(*writes)
        return self.summary()

    async def tell(self, number: int, request: TellRequest) -> TrialRecord:
        """End a trial, unless it has ended already; return it as it is then."""
        metrics = [objective.metric for objective in self.definition.objectives]
        return await self._end(number, read_result(request, metrics))

    async def stop(self, failure: Failure) -> None:
        """Start no more trials, and end the running ones and the refit as FAIL."""
        self.gone = True
        async with self._lock:
            running = self._board.running
        result = Result(TrialState.FAIL, failure=failure)
        await asyncio.gather(self.refit.stop(failure), *(self._end(number, result) for number in running))

    def record(self, number: int) -> TrialRecord:
        """Return a trial."""
        return record_of(self._trial(number))

    def view(self, number: int) -> TrialView:
        """Return what a trial's pod needs."""
        return view_of(checks.started(self._trial(number)), self.definition)

    async def suggest(self, number: int, request: SuggestRequest) -> Any:
        """Return a trial's value of a parameter, the same each time it is asked for."""
        distribution = checks.distribution_of(request)
        async with self._lock:
            checks.check_suggestible(checks.started(self._trial(number)), request.name, self.definition)
            try:
                value, writes = await self._in_thread(self._tuner.suggest, number, request.name, distribution)
            except ValueError as error:
                raise checks.refused(request.name, str(error)) from None
        await self._settle(writes)
        return value

    async def report(self, number: int, values: Sequence[tuple[int, float]]) -> bool:
        """Keep intermediate values, the first of each step; return whether the trial should stop."""
        trial = checks.started(self._trial(number))
        checks.check_reportable(self.definition, values)
        if trial.state.is_finished():
            return True
        with self._store.deferred() as writes:
            try:
                fresh = self._keep(trial, values)
                told = PRUNE_REQUESTED in trial.system_attrs and not fresh  # sent again: as before
                prune = told or self._judge(id_of(trial))
            except UpdateFinishedTrialError:  # it was told to end meanwhile
                return True
        await self._settle(*([writes] if fresh else []))
        return prune

    async def set_attributes(self, number: int, request: AttributesRequest) -> TrialRecord:
        """Set user attributes, and constraints that are not set yet; a finished trial stays as it is."""
        trial = checks.started(self._trial(number))
        checks.check_constraints(request)
        if not trial.state.is_finished():
            with self._store.deferred() as writes:
                self._set_attributes(trial, request)
            await self._settle(writes)
        return self.record(number)

    def _keep(self, trial: FrozenTrial, values: Sequence[tuple[int, float]]) -> bool:
        """Return whether any value was new."""
        fresh: dict[int, float] = {}
        for step, value in values:
            if step not in trial.intermediate_values:
                fresh.setdefault(step, value)
        for step, value in fresh.items():
            self.study.storage.set_trial_intermediate_value(id_of(trial), step, value)
        return bool(fresh)

    def _judge(self, trial_id: int) -> bool:
        storage = self.study.storage
        trial = storage.get_trial(trial_id)
        prune = self._pruning.should_prune(trial)
        if prune and PRUNE_REQUESTED not in trial.system_attrs:
            storage.set_trial_system_attr(trial_id, PRUNE_REQUESTED, datetime.now(UTC).isoformat())
            self._feed.mark(self.key)
        return prune

    def _set_attributes(self, trial: FrozenTrial, request: AttributesRequest) -> None:
        storage, trial_id = self.study.storage, id_of(trial)
        for key, value in request.user_attrs.items():
            storage.set_trial_user_attr(trial_id, key, value)
        for key, number in request.constraints.items():
            if CONSTRAINT + key not in storage.get_trial_system_attrs(trial_id):
                storage.set_trial_system_attr(trial_id, CONSTRAINT + key, number)

    async def _start_one(self, request: AskRequest, writes: list[Writes]) -> bool:
        """Start a trial, if there is room for one; return whether it runs then. Adds to `writes`."""
        async with self._lock:
            if not (self._tuner.unfinished or self._room(request)):
                return False
            number, written = await self._in_thread(self._tuner.start)
            writes.append(written)
            trial = self.study.frozen(number)
            self._note(trial)
            return trial.state == TrialState.RUNNING

    def _room(self, request: AskRequest) -> bool:
        board = self._board
        if self.gone or board.running_count >= request.parallelism or board.started >= request.max_trials:
            return False
        return board.waiting > 0 or not (self.study.exhausted or self.study.all_begun)

    async def _end(self, number: int, result: Result) -> TrialRecord:
        async with self._lock:
            writes: list[Writes] = []
            if not checks.started(self._trial(number)).state.is_finished():
                _, written = await self._in_thread(self._tuner.end, number, result)
                writes.append(written)
                self._note(self.study.frozen(number))
                self._feed.mark(self.key)
        await self._settle(*writes)
        return self.record(number)

    async def _settle(self, *several: Writes) -> None:
        """Wait until writes are durable; without any given, all that the reply may be based on."""
        try:
            await self._surroundings.settle(*several)
        except UpdateFinishedTrialError:  # someone else ended the trial first: his telling holds
            async with self._lock:
                await self._in_thread(self._recount)

    def _note(self, trial: FrozenTrial) -> None:
        """Take in a trial as it is now. The lock is held, so that nothing slips through a recount."""
        self._board.note(trial)
        self._pruning.note(trial)

    def _recount(self) -> None:
        """Take in all trials anew; blocking."""
        board = Scoreboard(self.study.directions)
        board.note_all(self.study.get_trials(deepcopy=False))
        self._board, self._pruning = board, make_pruning(self.study.pruner, self.study)

    def _trial(self, number: int) -> FrozenTrial:
        try:
            return self.study.frozen(number)
        except KeyError:
            raise unknown_trial(number, self.study.study_name) from None

    def _check_here(self) -> None:
        if self.gone:
            raise unknown_study(*self.key)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, Writes]:
        def run() -> tuple[T, Writes]:
            with self._store.deferred() as writes:
                return work(*args, **kwargs), writes

        return await asyncio.get_running_loop().run_in_executor(self._executor, run)
