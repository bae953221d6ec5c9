"""Optuna's work on one study: proposing, suggesting, ending. Blocking; one thread at a time."""

import logging
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from tuning_operator.protocol import Failure, StudyDefinition
from tuning_operator.resource import space
from tuning_operator.studies.definition.samplers import to_optuna
from tuning_operator.studies.storage.errors import Fenced
from tuning_operator.studies.study.records import FAIL_REASON, failure_attrs
from tuning_operator.studies.study.results import Result
from tuning_operator.studies.study.served_study import ServedStudy, suggest

log = logging.getLogger(__name__)


class Tuner:
    """Starts and ends a study's trials, as `study.optimize` would.

    Not for several threads at once: who calls holds the study's lock.
    """

    def __init__(self, study: ServedStudy, definition: StudyDefinition) -> None:
        self._study = study
        self.definition = definition
        self._trials: dict[int, optuna.Trial] = {}
        self._begun: optuna.Trial | None = None

    @property
    def unfinished(self) -> bool:
        """Whether a trial was started, but the database kept it from getting all of its parameters."""
        return self._begun is not None

    def start(self) -> int:
        """Start a waiting trial or a new one; return its number.

        A trial that cannot be proposed ends as FAIL, which says why, so that none is left RUNNING.
        """
        self._study.enter()
        self._begun = trial = self._begun or self._study.ask()
        self._trials[trial.number] = trial
        self._complete_or_fail(trial)
        self._begun = None
        return trial.number

    def resume(self, number: int) -> int:
        """Give a RUNNING trial of the record what a server's end kept it from getting; return its number."""
        self._study.enter()
        self._complete_or_fail(self._trial(number))
        return number

    def suggest(self, number: int, name: str, distribution: BaseDistribution) -> Any:
        """Return a running trial's value of a parameter. Raises ValueError for one that cannot be."""
        self._study.enter()
        return suggest(self._trial(number), name, distribution)

    def end(self, number: int, result: Result) -> None:
        """End a running trial, through the sampler, as `study.tell` does."""
        self._study.enter()
        if result.failure is not None:
            self._keep_failure(number, result.failure)
        try:
            self._study.tell(number, result.values, result.state)
        except Exception:
            if self._study.frozen(number).state == TrialState.RUNNING:
                raise
            log.exception("The sampler of %s failed after trial %d", self._study.study_name, number)
        self._trials.pop(number, None)

    def _trial(self, number: int) -> optuna.Trial:
        """Return the trial's object: kept since it was asked for, made anew after a restart of the server."""
        if number not in self._trials:
            self._trials[number] = optuna.Trial(self._study, self._study.trial_id(number))
        return self._trials[number]

    def _complete_or_fail(self, trial: optuna.Trial) -> None:
        try:
            self._walk(trial)
        except (TimeoutError, Fenced):  # the database's fault, not the definition's
            raise
        except Exception as error:
            log.exception("Trial %d of %s cannot be proposed", trial.number, self._study.study_name)
            failure = Failure(
                category="NotProposed",
                message=f"{self.definition.sampler.name} could not propose parameters: {error}",
                remedy="Correct spec.sampler, spec.searchSpace or spec.initialTrials.",
            )
            self.end(trial.number, Result(TrialState.FAIL, failure=failure))

    def _walk(self, trial: optuna.Trial) -> None:
        declared = self.definition.search_space or []
        while parameter := space.next_parameter(declared, trial.params):
            suggest(trial, parameter.name, to_optuna(parameter))

    def _keep_failure(self, number: int, failure: Failure) -> None:
        trial_id = self._study.trial_id(number)
        for key, text in failure_attrs(failure).items():
            self._study.storage.set_trial_user_attr(trial_id, key, text)
        self._study.storage.set_trial_system_attr(trial_id, FAIL_REASON, failure.message)
