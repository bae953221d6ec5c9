"""Optuna's work on one study: proposing, suggesting, ending. Relies on private parts of Optuna."""

import hashlib
import logging
import math
import traceback
from collections import deque
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import UpdateFinishedTrialError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GridSampler, PartialFixedSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning_operator.protocol import Failure, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.studies.definition.samplers import to_optuna
from tuning_operator.studies.definition.tpe import forget_finished
from tuning_operator.studies.errors import unknown_trial
from tuning_operator.studies.storage.base import Fenced, Store
from tuning_operator.studies.study.checks import Result
from tuning_operator.studies.study.records import FAIL_REASON, bounded, failure_attrs

log = logging.getLogger(__name__)

EXHAUSTED = "tuning:exhausted"
"""A study's system attribute: a digest of sampler and search space when everything had been tried."""
METRIC_NAMES = "study:metric_names"
"""The system attribute in which `study.set_metric_names` keeps them; the dashboard shows them."""

NOT_OPTUNAS = (TimeoutError, Fenced)
"""Errors of the database, after which a request may be sent again."""


class NotProposed(Exception):  # noqa: N818
    """Optuna could not propose a parameter, so the trial has ended as FAIL."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class ServedStudy(optuna.Study):
    """A study outside of `optimize`: used from several threads, one at a time."""

    def __init__(
        self,
        name: str,
        storage: BaseStorage,
        sampler: BaseSampler,
        pruner: BasePruner,
        definition: StudyDefinition,
    ) -> None:
        super().__init__(name, storage, sampler, pruner)
        self.definition = definition

    @property
    def storage(self) -> BaseStorage:
        """Where the study is kept."""
        return self._storage

    @property
    def study_id(self) -> int:
        """The study's number in its storage."""
        return self._study_id

    @property
    def exhausted(self) -> bool:
        """Whether the sampler has called `stop` for what it is to try now."""
        tried = self.system_attr(EXHAUSTED)
        return tried is not None and tried == self._tried

    def stop(self) -> None:
        """Note that the sampler has tried everything: a sampler calls this to end the loop of `optimize`."""
        self.set_system_attr(EXHAUSTED, self._tried)

    def enter(self) -> None:
        """Start a piece of work in this thread: what the thread has cached of the trials may be outdated."""
        self._thread_local.cached_all_trials = None

    def system_attr(self, key: str) -> Any:
        """Return a system attribute of the study, None if there is none."""
        return self._storage.get_study_system_attrs(self._study_id).get(key)

    def set_system_attr(self, key: str, value: Any) -> None:
        """Set a system attribute of the study."""
        self._storage.set_study_system_attr(self._study_id, key, value)

    def next_waiting(self) -> int | None:
        """Start a waiting trial, as `ask` does, without the sampler; return its number."""
        trial_id = self._pop_waiting_trial_id()
        return None if trial_id is None else self._storage.get_trial(trial_id).number

    def trial_id(self, number: int) -> int:
        """Return the storage's id of a trial. Raises KeyError."""
        if number < 0:  # Optuna's storage in memory would count from the last trial
            raise KeyError(number)
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def frozen(self, number: int) -> FrozenTrial:
        """Return a trial as it is now. Raises KeyError."""
        return self._storage.get_trial(self.trial_id(number))

    def find_trial(self, number: int) -> FrozenTrial:
        """Return a trial as it is now, for a request that names it. Raises NotFound."""
        try:
            return self.frozen(number)
        except KeyError:
            raise unknown_trial(number, self.study_name) from None

    @property
    def _tried(self) -> str:
        """A digest of what decides which trials there are to try: with another one, there may be more."""
        text = self.definition.model_dump_json(include={"sampler", "search_space"}, exclude_defaults=True)
        return hashlib.sha256(text.encode()).hexdigest()


class GridProgress:
    """Whether each point of a grid is running or has ended, kept trial by trial.

    Optuna would start a point a second time while its trial is running, in case that trial never ends; here,
    all trials end.
    """

    def __init__(self, sampler: BaseSampler) -> None:
        while isinstance(sampler, PartialFixedSampler):
            sampler = sampler._base_sampler  # noqa: SLF001
        self._sampler = sampler if isinstance(sampler, GridSampler) else None
        self._started: set[int] = set()

    def note(self, trial: FrozenTrial) -> None:
        """Add a trial; adding it again changes nothing."""
        point = trial.system_attrs.get("grid_id")
        if self._sampler is None or point is None:
            return
        if self._sampler._same_search_space(trial.system_attrs["search_space"]):  # noqa: SLF001
            self._started.add(point)

    @property
    def left(self) -> float:
        """How many points are left to start; without a grid, infinitely many."""
        return math.inf if self._sampler is None else self._sampler._n_min_trials - len(self._started)  # noqa: SLF001


class Tuner:
    """Starts and ends a study's trials, as `study.optimize` would; blocking.

    Not for several threads at once: the caller holds the study's lock.
    """

    def __init__(self, study: ServedStudy, store: Store) -> None:
        self._study = study
        self._store = store
        self.incomplete: deque[int] = deque()
        """Trials that are on record as RUNNING and get their parameters next, in this order."""
        self._trials: dict[int, optuna.Trial] = {}
        self._conflicts = 0
        """The store's conflicts when a piece of work was started last."""

    def start(self, count: int = 1) -> int:
        """Start the next incomplete trial, a waiting one or a new one; return its number.

        A trial that cannot be proposed ends as FAIL with the reason, so that none stays RUNNING.

        Args:
            count: how many new trials to create in one transaction; the others are incomplete afterwards.
                Optuna's samplers ignore running trials without parameters: they propose what they would if
                each trial was created after the one before it had its parameters.
        """
        self._enter()
        if not self.incomplete:
            self.incomplete.extend(self._next(count))
        number = self.incomplete[0]
        self._complete_or_fail(number)
        self.incomplete.popleft()
        return number

    def lacks_parameters(self, number: int) -> bool:
        """Whether a RUNNING trial has not got all its parameters, as the server ended in the middle."""
        declared = self._study.definition.search_space or []
        return space.next_parameter(declared, self._study.frozen(number).params) is not None

    def resume(self, number: int) -> None:
        """Give a RUNNING trial the parameters that it lacks."""
        self._enter()
        self._complete_or_fail(number)

    def suggest(self, number: int, name: str, distribution: BaseDistribution) -> Any:
        """Return a running trial's value of a parameter.

        Raises:
            ValueError: Optuna does not accept the request, for example since the choices have changed.
            NotProposed: Optuna failed in another way. The trial has ended as FAIL.
        """
        self._enter()
        try:
            return _suggest(self._trial(number), name, distribution)
        except (ValueError, UpdateFinishedTrialError, *NOT_OPTUNAS):
            raise
        except Exception as error:
            raise NotProposed(self._fail(number, error)) from error

    def end(self, number: int, result: Result) -> None:
        """End a running trial, through the sampler, as `study.tell` does."""
        self._enter()
        if result.failure is not None:
            trial_id, storage = self._study.trial_id(number), self._study.storage
            for key, text in failure_attrs(result.failure).items():
                storage.set_trial_user_attr(trial_id, key, text)
            if result.state == TrialState.FAIL:
                storage.set_trial_system_attr(trial_id, FAIL_REASON, bounded(result.failure).message)
        try:
            self._study.tell(number, result.values, result.state)
        except Exception:
            if self._study.frozen(number).state == TrialState.RUNNING:
                raise
            log.exception("The sampler of %s failed after trial %d", self._study.study_name, number)
        self._trials.pop(number, None)

    def _enter(self) -> None:
        """Start a piece of work, with the record as it is now."""
        self._study.enter()
        conflicts = self._store.conflicts(self._study.study_id)
        if conflicts != self._conflicts:
            forget_finished(self._study.sampler)
            self._conflicts = conflicts

    def _next(self, count: int) -> list[int]:
        waiting = self._study.next_waiting()
        if waiting is not None:
            return [waiting]
        new = [create_trial(state=TrialState.RUNNING) for _ in range(count)]
        ids = self._store.add_trials(self._study.study_id, new)
        return [self._study.storage.get_trial_number_from_id(trial_id) for trial_id in ids]

    def _trial(self, number: int) -> optuna.Trial:
        """Return the trial's object: that of `ask` or, after a restart of the server, a new one."""
        if number not in self._trials:
            self._trials[number] = optuna.Trial(self._study, self._study.trial_id(number))
        return self._trials[number]

    def _complete_or_fail(self, number: int) -> None:
        declared = self._study.definition.search_space or []
        try:
            trial = self._trial(number)
            while parameter := space.next_parameter(declared, trial.params):
                _suggest(trial, parameter.name, to_optuna(parameter))
        except NOT_OPTUNAS:
            raise
        except Exception as error:  # noqa: BLE001  whatever a sampler raises
            self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> Failure:
        """End a trial that Optuna cannot propose parameters for; return the reason, in Optuna's words."""
        log.exception("Trial %d of %s cannot be proposed", number, self._study.study_name)
        words = "".join(traceback.format_exception_only(error)).strip()
        failure = Failure(
            category="NotProposed",
            message=f"{self._study.definition.sampler.name} could not propose parameters: {words}",
            remedy="Correct spec.sampler, spec.searchSpace or spec.initialTrials.",
        )
        self.end(number, Result(TrialState.FAIL, failure=failure))
        return failure


def id_of(trial: FrozenTrial) -> int:
    """Return the storage's id of a trial."""
    return trial._trial_id  # noqa: SLF001


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case FloatDistribution(low=low, high=high, log=log_scale, step=step):
            return trial.suggest_float(name, low, high, log=log_scale, step=step)
        case IntDistribution(low=low, high=high, log=log_scale, step=step):
            return trial.suggest_int(name, low, high, log=log_scale, step=step)
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
    raise ValueError(f"{type(distribution).__name__} is not a distribution that a trial can suggest from")
