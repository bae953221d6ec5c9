"""One study: its trials are asked for, reported on and ended. Every reply follows the durable record."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, ParamSpec, TypeVar

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import (
    PRUNE_REASON,
    AskRequest,
    AttributesRequest,
    Counts,
    Failure,
    Problem,
    StudyDefinition,
    StudyKey,
    StudySummary,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
    WorkReply,
    WorkRequest,
)
from tuning_operator.studies.definition.samplers import build_pruner, build_sampler, same_sampler
from tuning_operator.studies.errors import Conflict, NotFound, Refused, unknown_study
from tuning_operator.studies.pruning import Pruning, make_pruning
from tuning_operator.studies.pruning.base import OptunaPruning
from tuning_operator.studies.storage.base import StorageUnavailable, Writes
from tuning_operator.studies.study import checks
from tuning_operator.studies.study.context import Context, in_thread
from tuning_operator.studies.study.earlier import CONTINUED
from tuning_operator.studies.study.optuna_study import (
    GridProgress,
    NotProposed,
    ServedStudy,
    Tuner,
    id_of,
)
from tuning_operator.studies.study.records import (
    PRUNE_REQUESTED,
    json_pieces,
    proposed,
    record_of,
    utc,
    view_of,
)
from tuning_operator.studies.study.refit import Refit
from tuning_operator.studies.study.scoreboard import Scoreboard
from tuning_operator.studies.study.workers import Workers

GROUP = 16
"""New trials that are created in one transaction: all those of most requests."""
ASK_SECONDS = 0.1
"""A request that has taken longer starts no further group, so that the first trials are soon replied."""

P = ParamSpec("P")
T = TypeVar("T")


class StudyEngine:
    """Serves one study. Methods run on the event loop; Optuna's work in threads, one at a time.

    Sampling has threads of its own. A sampler's `after_trial` belongs to ending a trial, so it runs in the
    threads of results; however long it takes, other studies have threads left, since each uses only one.

    Every method may raise StudyError, and TimeoutError when the database is unavailable.
    """

    def __init__(self, key: StudyKey, study: ServedStudy, context: Context) -> None:
        self.key = key
        self.study = study
        self.gone = False
        """Whether the study was deleted, or is no longer in memory: no trial is started."""
        self.used_at = 0.0
        """When the study was used last, by the registry's clock."""
        self.refit = Refit(key, study, context)
        self.workers = Workers(study)
        self._context = context
        self._store = context.store
        self._threads = context.threads
        self._lock = asyncio.Lock()
        self._tuner = Tuner(study, context.store)
        self._board = Scoreboard(study.directions)
        self._grid = GridProgress(study.sampler)
        self._pruning: Pruning = OptunaPruning(study.pruner, study)
        self._conflicts = 0
        """The store's conflicts when the trials were last counted."""
        self._in_doubt = False
        """Whether the database did not answer when a trial was to be started, so that it may start later."""

    async def load(self) -> None:
        """Load the record."""
        async with self._lock:
            await in_thread(self._threads.records, self._recount)
            await self._resume()
        await self._settle()

    async def redefine(self, definition: StudyDefinition) -> None:
        """Continue with another definition; a sampler that stays the same keeps its state."""
        async with self._lock:
            new_sampler = not same_sampler(definition, self.definition)
            new_pruner = definition.pruner != self.definition.pruner
            if new_sampler:
                trials = self.study.get_trials(deepcopy=False)
                self.study.sampler = build_sampler(definition, proposed(trials))
            if new_pruner:
                self.study.pruner = build_pruner(definition)
            if new_sampler or new_pruner:
                await in_thread(self._threads.records, self._recount)
            self.study.definition = definition

    @property
    def definition(self) -> StudyDefinition:
        """What was declared last."""
        return self.study.definition

    @property
    def counts(self) -> Counts:
        """Trials by state, those that are not durable yet included."""
        return self._board.counts

    @property
    def trials(self) -> int:
        """How many trials there are, copies included."""
        return self._board.total

    @property
    def idle(self) -> bool:
        """Whether no trial and no refit is running, and no request is at work on the study."""
        refit = self.refit.record
        refitting = refit is not None and refit.state == "RUNNING"
        runs = self._board.running_count or self._tuner.incomplete
        return not (self._lock.locked() or runs or refitting)

    async def summary(self) -> StudySummary:
        """Return the study's summary; costs no more than its running trials."""
        while True:
            await self._catch_up()
            conflicts, found = self._conflicts, self._summary()
            await self._settle()
            if conflicts == self._store.conflicts(self.study.study_id):
                return found

    async def pick_up(self) -> None:
        """Read what others wrote to the record: trials enqueued from the dashboard or by plain Optuna."""
        try:
            await in_thread(self._threads.records, self._store.refresh, self.study.study_id)
        except KeyError:
            raise self._deleted_by_others() from None
        await self._catch_up()
        async with self._lock:
            if self._in_doubt:
                await self._context.settle()
            count = self.study.storage.get_n_trials(self.study.study_id)
            for number in [*self._board.unfinished, *self._board.missing(count)]:
                if number not in self._tuner.incomplete:
                    self._note(self.study.frozen(number))
            if self._in_doubt:
                await self._resume()
                self._in_doubt = False

    async def ask(self, request: AskRequest) -> StudySummary:
        """Start trials until as many run as requested; return the summary after that.

        Where there are more than 16 to start, it may return before, and expects to be called again.
        """
        if self.gone:
            raise unknown_study(*self.key)
        began = time.monotonic()
        self.workers.leaving = frozenset(request.leaving)  # before there is a trial that they could take
        await self.pick_up()
        writes: list[Writes] = []
        while await self._start_one(request, writes):
            enough = len(writes) >= GROUP and not self._tuner.incomplete
            if enough and time.monotonic() - began > ASK_SECONDS:
                break
        self.workers.wake()
        await self._settle(*writes)
        return await self.summary()

    async def work(self, pod: str, request: WorkRequest) -> WorkReply:
        """Give trials to a worker's pod; wait until there is one to start or to end.

        The request of a dead pod may still wait when the next pod of its worker sends one: it gets no trials.
        """
        self.workers.check(request)
        self.workers.note(pod)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.timeout
        while not self.gone:
            try:
                with self._store.deferred() as writes:
                    found = self.workers.assign(pod, request, self.definition, self._board.running)
            except UpdateFinishedTrialError:  # a thread has just ended the trial
                continue
            left = deadline - loop.time()
            if found.start or found.ended or left <= 0 or self.workers.closed:
                await self._settle(writes)
                return found
            await self.workers.wait(left)
            if self.workers.is_replaced(pod):
                return WorkReply(start=[], ended=[])
        raise unknown_study(*self.key)

    async def tell(self, number: int, request: TellRequest) -> TrialRecord:
        """End a trial, unless it has already ended; return it."""
        metrics = [objective.metric for objective in self.definition.objectives]
        result = checks.read_result(request, self.study, metrics)
        with suppress(Refused):
            if request.attributes:
                await self.set_attributes(number, request.attributes)
        with suppress(Refused):
            if request.reported:
                await self.report(number, request.reported)
        return await self._end(number, result)

    async def stop(self, failure: Failure) -> None:
        """Start no more trials; end the running ones as PRUNED, and the refit, with this reason."""
        self.gone = True
        self.workers.wake()
        async with self._lock:
            running = [*self._board.running, *self._tuner.incomplete]
            self._tuner.incomplete.clear()
        result = checks.Result(TrialState.PRUNED, failure=failure)
        await asyncio.gather(self.refit.stop(failure), *(self._end(number, result) for number in running))

    async def record(self, number: int) -> TrialRecord:
        """Return a trial."""
        return await self._read(lambda: record_of(self.study.find_trial(number)))

    async def view(self, number: int) -> TrialView:
        """Return a trial as its pod sees it."""
        return await self._read(
            lambda: view_of(checks.started(self.study.find_trial(number)), self.definition)
        )

    def check_same(self, number: int, started: datetime) -> None:
        """Check that the trial of a number is the one that started then. Raises Conflict, NotFound.

        Another one has started in its place if the database was restored to a state before it, or is new.
        """
        if started != utc(self.study.find_trial(number).datetime_start):
            message = (
                f"the database has lost trial {number} of this pod, and another trial of this number has "
                "started since: the database was restored from a backup, or replaced"
            )
            raise Conflict(Problem(field="trial", message=message))

    async def whole(self, first: int = 0) -> Iterator[bytes]:
        """Return the study, with the trials from this number on, as pieces of the JSON of a FinishedStudy."""
        return await self._read(lambda: json_pieces(self.study, first))

    async def suggest(self, number: int, request: SuggestRequest) -> Any:
        """Return a trial's value of a parameter, the same each time.

        If Optuna can't propose one, the trial ends as FAIL, and the request is refused.
        """
        distribution = checks.distribution_of(request)
        checks.check_enumerable(self.study.sampler, request.name, distribution)
        failure: Failure | None = None
        async with self._lock:
            checks.check_suggestible(
                checks.started(self.study.find_trial(number)), request.name, self.definition
            )
            try:
                value, writes = await self._write(
                    self._threads.sampling, self._tuner.suggest, number, request.name, distribution
                )
            except ValueError as error:
                raise checks.refused(request.name, str(error)) from None
            except NotProposed as error:
                failure = error.failure
                self._note(self.study.frozen(number))
        if failure:
            await self._announce()
            raise checks.refused(request.name, failure.describe())
        await self._settle(writes)
        return value

    async def report(self, number: int, values: Sequence[tuple[int, float]]) -> bool:
        """Keep intermediate values, the first of each step; return whether the trial should stop."""
        trial = checks.started(self.study.find_trial(number))
        checks.check_reportable(self.definition, values)
        if trial.state.is_finished():
            await self._settle()
            return True
        requested = PRUNE_REQUESTED in trial.system_attrs
        with self._store.deferred() as writes:
            try:
                new = self._keep(trial, values)
                prune = (requested and not new) or self._judge(id_of(trial))  # sent again: the same answer
            except UpdateFinishedTrialError:  # it ended in the meantime
                prune = True
        if prune and not requested:
            await self._announce(writes)
        else:
            await self._settle(writes)
        return prune

    async def set_attributes(self, number: int, request: AttributesRequest) -> TrialRecord:
        """Set user attributes, and constraints that are not set yet; a finished trial stays as it is."""
        trial = checks.started(self.study.find_trial(number))
        storage, trial_id = self.study.storage, id_of(trial)
        known = storage.get_study_user_attrs(self.study.study_id)
        checks.check_attributes(request, trial.user_attrs, known)
        with self._store.deferred() as writes, suppress(UpdateFinishedTrialError):
            if not trial.state.is_finished():
                # Each pod of a script sets the study's again, and a retry all of its first attempt.
                for key, value in _changed(request.study_attrs, known).items():
                    storage.set_study_user_attr(self.study.study_id, key, value)
                for key, value in _changed(request.user_attrs, trial.user_attrs).items():
                    storage.set_trial_user_attr(trial_id, key, value)
                for name, constraint in request.constraints.items():
                    if checks.CONSTRAINT + name not in storage.get_trial_system_attrs(trial_id):
                        storage.set_trial_system_attr(trial_id, checks.CONSTRAINT + name, constraint)
        await self._settle(writes)
        return await self.record(number)

    def _summary(self) -> StudySummary:
        running = []
        for trial in map(self.study.frozen, self._board.running):
            if trial.state == TrialState.RUNNING:
                running.append(trial)
            else:  # a thread has just ended it
                self._note(trial)
        targets = [objective.target for objective in self.definition.objectives]
        board = self._board.summary(running, targets, exhausted=self._exhausted)
        continued = self.study.system_attr(CONTINUED)
        update = {
            "refit": self.refit.record,
            "uid": self.definition.uid,
            "continued": continued,
            "leaving": sorted(self.workers.leaving),
        }
        return board.model_copy(update=update)

    def _keep(self, trial: FrozenTrial, values: Sequence[tuple[int, float]]) -> bool:
        """Write the values of new steps; return whether there are any."""
        new: dict[int, float] = {}
        for step, value in values:
            if step not in trial.intermediate_values:
                new.setdefault(step, value)
        if len(new) + len(trial.intermediate_values) > checks.STEPS:
            message = f"a trial reports at most {checks.STEPS:,} steps: report less often"
            raise checks.refused("values", message)
        if new:
            self._store.report(id_of(trial), new)
        return bool(new)

    def _judge(self, trial_id: int) -> bool:
        storage = self.study.storage
        trial = storage.get_trial(trial_id)
        prune = self._pruning.should_prune(trial)
        if prune and PRUNE_REQUESTED not in trial.system_attrs:
            storage.set_trial_system_attr(trial_id, PRUNE_REQUESTED, datetime.now(UTC).isoformat())
            reason = self._pruning.reason(storage.get_trial(trial_id))
            storage.set_trial_user_attr(trial_id, PRUNE_REASON, reason)
        return prune

    async def _start_one(self, request: AskRequest, writes: list[Writes]) -> bool:
        """Start a trial, if there is room for one; return whether to go on. Adds to `writes`.

        Once the sampler has proposed one trial, the others are created in one transaction.
        """
        async with self._lock:
            room = self._room(request)
            if not (self._tuner.incomplete or room):
                return False
            if self._in_doubt:
                raise StorageUnavailable("The database did not answer when a trial was started.")
            self._in_doubt = True
            several = bool(writes) and not self._board.waiting
            count = min(room, GROUP - len(writes) % GROUP) if several else 1
            number, written = await self._write(self._threads.sampling, self._tuner.start, count)
            self._in_doubt = False
            writes.append(written)
            trial = self.study.frozen(number)
            self._note(trial)
            return trial.state == TrialState.RUNNING or bool(self._tuner.incomplete)

    async def _resume(self) -> None:
        """Give the running trials without all their parameters those that they lack. The lock is held."""
        for number in filter(self._tuner.lacks_parameters, self._board.running):
            await self._write(self._threads.sampling, self._tuner.resume, number)
            self._note(self.study.frozen(number))

    @property
    def _exhausted(self) -> bool:
        """Whether the sampler has nothing left to try.

        A grid's points may all have ended before the sampler was declared, for example with another seed.
        """
        return self.study.exhausted or (self._grid.left <= 0 and not self._board.running_count)

    def _room(self, request: AskRequest) -> int:
        """Return how many trials there is room for."""
        if self.gone:
            return 0
        board = self._board
        room = min(request.parallelism - board.running_count, request.max_trials - board.started)
        left = 0 if self._exhausted else self._grid.left
        return max(0, int(min(room, max(left, board.waiting))))

    async def _end(self, number: int, result: checks.Result) -> TrialRecord:
        async with self._lock:
            ended = checks.started(self.study.find_trial(number)).state.is_finished()
            if not ended:
                _, writes = await self._write(self._threads.results, self._tuner.end, number, result)
                self._note(self.study.frozen(number))
        if not ended:
            await self._announce(writes)
        return await self.record(number)

    async def _settle(self, *several: Writes) -> None:
        """Return once these writes, and all others that a reply may be based on, are durable."""
        try:
            await self._context.settle(*several)
        except UpdateFinishedTrialError:  # another process ended the trial first: its result stays
            await self._catch_up()
        except KeyError:
            raise self._deleted_by_others() from None

    async def _announce(self, *several: Writes) -> None:
        """Settle writes that change the study, and have the change feed name it then."""
        try:
            await self._context.announce(self.key, *several)
        except UpdateFinishedTrialError:
            await self._catch_up()
        except KeyError:
            raise self._deleted_by_others() from None
        self.workers.wake()

    def _deleted_by_others(self) -> NotFound:
        """Return the error for a study whose record another process deleted; it is no longer served."""
        self.gone = True
        self.workers.wake()
        return unknown_study(*self.key)

    async def _read(self, look: Callable[[], T]) -> T:
        """Return what `look` finds, once all of it is durable; it looks again where a write was refused."""
        while True:
            conflicts, found = self._store.conflicts(self.study.study_id), look()
            await self._settle()
            if conflicts == self._store.conflicts(self.study.study_id):
                return found

    async def _catch_up(self) -> None:
        """Count the trials again if a write to one was refused since they were counted."""
        if self._conflicts != self._store.conflicts(self.study.study_id):
            async with self._lock:
                await in_thread(self._threads.records, self._recount)

    def _note(self, trial: FrozenTrial) -> None:
        """Add a trial as it is now, with the lock held, so that a recount does not miss it."""
        self._board.note(trial)
        self._grid.note(trial)
        self._pruning.note(trial)

    def _recount(self) -> None:
        """Count all trials from scratch; blocking."""
        conflicts = self._store.conflicts(self.study.study_id)  # of before the trials are read
        board, grid = Scoreboard(self.study.directions), GridProgress(self.study.sampler)
        trials = self.study.get_trials(deepcopy=False)
        board.note_all(trial for trial in trials if trial.number not in self._tuner.incomplete)
        for trial in trials:
            grid.note(trial)
        self._board, self._grid, self._pruning = board, grid, make_pruning(self.study.pruner, self.study)
        self._conflicts = conflicts

    async def _write(
        self, pool: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> tuple[T, Writes]:
        """Do work in a thread of a pool; return its result and its writes."""

        def run() -> tuple[T, Writes]:
            with self._store.deferred() as writes:
                return work(*args, **kwargs), writes

        return await in_thread(pool, run)


def _changed(new: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that are not known with the same JSON, in which 1 and true differ."""
    texts = {key: json.dumps(known[key]) for key in new if key in known}
    return {key: value for key, value in new.items() if texts.get(key) != json.dumps(value)}
