"""A study's standing, kept trial by trial, so that a summary costs no more than its running trials."""

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import Counts, StudySummary
from tuning_operator.studies.study.front import ParetoFront
from tuning_operator.studies.study.records import is_copied, record_of

FRONT_SIZE = 50


class Scoreboard:
    """Counts, running trials, the best ones and the last failure.

    Best is meant as in Optuna: infeasible trials do not count, and of equal ones the first to complete stays.
    """

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._single = len(directions) == 1
        self._sign = -1.0 if directions[0] == StudyDirection.MAXIMIZE else 1.0
        self._states: dict[int, TrialState] = {}
        self._copied: set[int] = set()
        self._counts: Counter[TrialState] = Counter()
        self._running: set[int] = set()
        self._waiting: set[int] = set()
        self._best: FrozenTrial | None = None
        self._since_best = 0
        self._front = ParetoFront(directions)
        self._last_failure: FrozenTrial | None = None

    def note_all(self, trials: Iterable[FrozenTrial]) -> None:
        """Take in a record's trials, in the order in which they ended."""
        for trial in sorted(trials, key=_end):
            self.note(trial)

    def note(self, trial: FrozenTrial) -> None:
        """Take in a trial that is new or has another state than before."""
        if is_copied(trial):
            self._note_copied(trial)
            return
        before = self._states.get(trial.number)
        if before == trial.state:
            return
        if before is not None:
            self._counts[before] -= 1
        self._states[trial.number] = trial.state
        self._counts[trial.state] += 1
        _keep_if(trial.state == TrialState.RUNNING, self._running, trial.number)
        _keep_if(trial.state == TrialState.WAITING, self._waiting, trial.number)
        if trial.state == TrialState.COMPLETE:
            self._note_complete(trial, mine=True)
        elif trial.state == TrialState.FAIL:
            self._note_failure(trial)

    @property
    def running(self) -> list[int]:
        """The numbers of the running trials."""
        return sorted(self._running)

    @property
    def running_count(self) -> int:
        """How many trials run."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many enqueued trials were not started."""
        return len(self._waiting)

    @property
    def unfinished(self) -> list[int]:
        """The numbers of the trials that may still change."""
        return [*self._running, *self._waiting]

    @property
    def total(self) -> int:
        """How many trials there are, copies included."""
        return len(self._states) + len(self._copied)

    @property
    def started(self) -> int:
        """How many trials of this study's own run or have ended."""
        return len(self._states) - self.waiting

    @property
    def counts(self) -> Counts:
        """Trials by state."""
        own = {state.name.lower(): self._counts[state] for state in TrialState}
        return Counts(**own, copied=len(self._copied))

    def summary(self, running: Iterable[FrozenTrial], *, exhausted: bool) -> StudySummary:
        """Return the study's standing.

        Args:
            running: the trials that run now, as they are now, by number.
            exhausted: whether the sampler has nothing more to propose.
        """
        return StudySummary(
            counts=self.counts,
            running=[record_of(trial) for trial in running],
            best=record_of(self._best) if self._best else None,
            pareto_front=[]
            if self._single
            else [record_of(trial) for trial in self._front.first(FRONT_SIZE)],
            trials_since_best=self._since_best,
            exhausted=exhausted and not self.waiting,
            last_failure=record_of(self._last_failure) if self._last_failure else None,
        )

    def _note_copied(self, trial: FrozenTrial) -> None:
        """Take in another study's trial: it may be the best one, and counts nowhere else."""
        if trial.number not in self._copied:
            self._copied.add(trial.number)
            if trial.state == TrialState.COMPLETE:
                self._note_complete(trial, mine=False)

    def _note_complete(self, trial: FrozenTrial, *, mine: bool) -> None:
        feasible = all(value <= 0 for value in trial.constraints.values())
        if not self._single:
            if feasible:
                self._front.add(trial)
        elif feasible and self._is_better(trial):
            self._best, self._since_best = trial, 0
        elif mine:
            self._since_best += 1

    def _is_better(self, trial: FrozenTrial) -> bool:
        return self._best is None or self._sign * trial.values[0] < self._sign * self._best.values[0]

    def _note_failure(self, trial: FrozenTrial) -> None:
        if self._last_failure is None or trial.number > self._last_failure.number:
            self._last_failure = trial


def _end(trial: FrozenTrial) -> tuple[datetime, int]:
    return trial.datetime_complete or datetime.max, trial.number  # noqa: DTZ901  Optuna's times are naive


def _keep_if(belongs: bool, numbers: set[int], number: int) -> None:
    if belongs:
        numbers.add(number)
    else:
        numbers.discard(number)
