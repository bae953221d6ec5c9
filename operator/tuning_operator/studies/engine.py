"""One study, served: trials are asked for, reported on and ended; each reply follows the durable record."""

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from optuna.distributions import json_to_distribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import (
    AskRequest,
    AttributesRequest,
    Counts,
    Failure,
    Problem,
    StudyDefinition,
    StudySummary,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
)
from tuning_operator.studies import assembly
from tuning_operator.studies.errors import Conflict, Refused, unknown_trial
from tuning_operator.studies.feed import ChangeFeed, Key
from tuning_operator.studies.records import PRUNE_REQUESTED, record_of, view_of
from tuning_operator.studies.results import Result, read_result
from tuning_operator.studies.scoreboard import Scoreboard
from tuning_operator.studies.served_study import CONSTRAINT, ServedStudy, id_of
from tuning_operator.studies.store import Store
from tuning_operator.studies.tuner import Tuner

LARGEST_ASK = 16
"""Trials that one request may start, so that none takes long."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Surroundings:
    """What all studies of a server share."""

    store: Store
    executor: Executor
    feed: ChangeFeed


class StudyEngine:
    """Serves one study. Methods run on the event loop; Optuna's sampling runs in threads, one at a time."""

    def __init__(
        self, key: Key, study: ServedStudy, definition: StudyDefinition, surroundings: Surroundings
    ) -> None:
        self.key = key
        self.study = study
        self.definition = definition
        self._store = surroundings.store
        self._executor = surroundings.executor
        self._feed = surroundings.feed
        self._lock = asyncio.Lock()
        self._stopped = False
        self._tuner = Tuner(study, definition)
        self._board = Scoreboard(study.directions)

    async def load(self) -> None:
        """Take in what the record holds."""
        trials = self.study.get_trials(deepcopy=False)
        self._board.note_all(trials)
        for number in self._board.running:
            await self._in_thread(self._tuner.resume, number)
            self._board.note(self.study.frozen(number))
        await self._store.durable()

    async def pick_up(self) -> None:
        """Take in what others wrote to the record: trials enqueued from the dashboard or by plain Optuna."""
        await self._store.pick_up(self.study.study_id)
        self._board.note_all(
            trial for trial in self.study.get_trials(deepcopy=False) if not self._board.knows(trial)
        )

    async def redefine(self, definition: StudyDefinition) -> None:
        """Go on with another definition; a sampler that stays the same keeps its state."""
        async with self._lock:
            if definition.sampler != self.definition.sampler:
                self.study.sampler = assembly.build_sampler(definition)
            self.study.pruner = assembly.build_pruner(definition)
            self.definition = definition
            self._tuner.definition = definition

    @property
    def counts(self) -> Counts:
        """Trials by state."""
        return self._board.counts

    def summary(self) -> StudySummary:
        """Return how the study stands; costs no more than its running trials."""
        running = [self.study.frozen(number) for number in self._board.running]
        return self._board.summary(running, exhausted=self.study.exhausted)

    async def ask(self, request: AskRequest) -> StudySummary:
        """Start trials until as many run as wanted, at most 16; return how the study stands then."""
        await self.pick_up()
        for _ in range(LARGEST_ASK):
            if not await self._start_one(request):
                break
        await self._store.durable()
        return self.summary()

    async def tell(self, number: int, request: TellRequest) -> TrialRecord:
        """End a trial, unless it has ended already; return it as it is then. Raises StudyError."""
        result = read_result(request, [objective.metric for objective in self.definition.objectives])
        return await self._end(number, result)

    async def stop(self, failure: Failure) -> None:
        """End all running trials as FAIL, and start no more."""
        self._stopped = True
        for number in self._board.running:
            await self._end(number, Result(TrialState.FAIL, failure=failure))

    def record(self, number: int) -> TrialRecord:
        """Return a trial. Raises NotFound."""
        return record_of(self._trial(number))

    def view(self, number: int) -> TrialView:
        """Return what a trial's pod needs. Raises StudyError."""
        return view_of(self._started(number), self.definition)

    async def suggest(self, number: int, request: SuggestRequest) -> Any:
        """Return a trial's value of a parameter, the same for each asking. Raises StudyError."""
        try:
            distribution = json_to_distribution(json.dumps(request.distribution))
        except (ValueError, KeyError, TypeError) as error:
            raise _refused("distribution", f"is not Optuna's JSON form of a distribution: {error}") from None
        async with self._lock:
            self._check_suggestable(self._started(number), request.name)
            try:
                value = await self._in_thread(self._tuner.suggest, number, request.name, distribution)
            except ValueError as error:
                raise _refused(request.name, str(error)) from None
        await self._store.durable()
        return value

    async def report(self, number: int, values: Sequence[tuple[int, float]]) -> bool:
        """Keep intermediate values, the first of each step; return whether the trial should stop."""
        trial = self._started(number)
        self._check_reportable(values)
        if trial.state.is_finished():
            return True
        try:
            prune = self._keep(id_of(trial), values)
            if prune:
                self._note_prune(trial)
        except UpdateFinishedTrialError:  # it was told to end meanwhile
            prune = True
        await self._store.durable()
        return prune

    async def set_attributes(self, number: int, request: AttributesRequest) -> TrialRecord:
        """Set user attributes, and constraints that are not set yet; a finished trial stays as it is."""
        trial = self._started(number)
        for key, value in request.constraints.items():
            if math.isnan(value):
                raise _refused(f"constraints.{key}", "NaN is no constraint value: tell a number")
        if not trial.state.is_finished():
            self._set_attributes(trial, request)
            await self._store.durable()
        return record_of(self.study.frozen(number))

    def _keep(self, trial_id: int, values: Sequence[tuple[int, float]]) -> bool:
        storage = self.study.storage
        for step, value in values:
            if step not in storage.get_trial(trial_id).intermediate_values:
                storage.set_trial_intermediate_value(trial_id, step, value)
        return self.study.pruner.prune(self.study, storage.get_trial(trial_id))

    def _set_attributes(self, trial: FrozenTrial, request: AttributesRequest) -> None:
        storage, trial_id = self.study.storage, id_of(trial)
        for key, value in request.user_attrs.items():
            storage.set_trial_user_attr(trial_id, key, value)
        for key, number in request.constraints.items():
            if CONSTRAINT + key not in storage.get_trial_system_attrs(trial_id):
                storage.set_trial_system_attr(trial_id, CONSTRAINT + key, number)

    async def _start_one(self, request: AskRequest) -> bool:
        async with self._lock:
            if not self._room(request):
                return False
            number = await self._in_thread(self._tuner.start)
            trial = self.study.frozen(number)
            self._board.note(trial)
            return trial.state == TrialState.RUNNING

    def _room(self, request: AskRequest) -> bool:
        board = self._board
        if self._stopped:
            return False
        if board.running_count >= request.parallelism or board.started >= request.max_trials:
            return False
        return board.waiting > 0 or not self.study.exhausted

    async def _end(self, number: int, result: Result) -> TrialRecord:
        async with self._lock:
            if not self._started(number).state.is_finished():
                await self._in_thread(self._tuner.end, number, result)
                self._board.note(self.study.frozen(number))
                self._feed.mark(self.key)
        await self._store.durable()
        return self.record(number)

    def _note_prune(self, trial: FrozenTrial) -> None:
        if PRUNE_REQUESTED not in trial.system_attrs:
            now = datetime.now(UTC).isoformat()
            self.study.storage.set_trial_system_attr(id_of(trial), PRUNE_REQUESTED, now)
            self._feed.mark(self.key)

    def _trial(self, number: int) -> FrozenTrial:
        try:
            return self.study.frozen(number)
        except KeyError:
            raise unknown_trial(number, self.study.study_name) from None

    def _started(self, number: int) -> FrozenTrial:
        trial = self._trial(number)
        if trial.state == TrialState.WAITING:
            raise Conflict(Problem(field="trial", message=f"trial {number} waits: it has not been started"))
        return trial

    def _check_suggestable(self, trial: FrozenTrial, name: str) -> None:
        if trial.state.is_finished() and name not in trial.params:
            raise self._finished(trial.number)
        if self.definition.search_space is not None and name not in trial.params:
            message = (
                f"spec.searchSpace gives trial {trial.number} no parameter {name}: declare it there, or "
                "leave searchSpace out, so that the objective suggests its own"
            )
            raise _refused(name, message)

    def _check_reportable(self, values: Sequence[tuple[int, float]]) -> None:
        if len(self.study.directions) > 1:
            raise _refused("values", "a study with several objectives takes no intermediate values (Optuna)")
        if any(step < 0 for step, _ in values):
            raise _refused("values", "a step must not be negative")

    def _finished(self, number: int) -> Conflict:
        state = self.study.frozen(number).state.name
        return Conflict(Problem(field="trial", message=f"trial {number} has ended already ({state})"))

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: work(*args, **kwargs))


def _refused(field: str, message: str) -> Refused:
    return Refused(Problem(field=field, message=message))
