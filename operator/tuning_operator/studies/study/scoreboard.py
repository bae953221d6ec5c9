"""A study's counts and best trials, kept trial by trial: a summary costs no more than its running trials."""

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from datetime import datetime

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from tuning_trainer.failure import CAUGHT

from tuning_operator.protocol import Counts, Durations, StudySummary, TrialRecord
from tuning_operator.studies.study.records import failure_of, is_copied, record_of

FRONT_SIZE = 50
RECENT_FAILURES = 10


class ParetoFront:
    """The trials that no other dominates; equal ones all belong, as in Optuna's `study.best_trials`."""

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._signs = [-1.0 if direction == StudyDirection.MAXIMIZE else 1.0 for direction in directions]
        self._members: list[tuple[list[float], FrozenTrial]] = []

    def add(self, trial: FrozenTrial) -> None:
        """Add a completed trial; cost O(front)."""
        loss = [sign * value for sign, value in zip(self._signs, trial.values, strict=True)]
        if any(_dominates(other, loss) for other, _ in self._members):
            return
        self._members = [member for member in self._members if not _dominates(loss, member[0])]
        self._members.append((loss, trial))

    def __len__(self) -> int:
        return len(self._members)

    def first(self, count: int, targets: Sequence[float | None]) -> list[FrozenTrial]:
        """Return `count` members at most, by number.

        The best in each objective are among them, and one that reaches all targets that are set. The others
        have the lowest numbers. Of equals in an objective, and of those that reach all targets, the lowest
        number is taken.
        """
        everyone = {trial.number: trial for _, trial in self._members}
        places = range(len(self._signs)) if everyone else ()
        bests = [min((loss[place], trial.number) for loss, trial in self._members)[1] for place in places]
        goals = [
            math.inf if target is None else sign * target
            for sign, target in zip(self._signs, targets, strict=True)
        ]
        reaching = sorted(
            trial.number
            for loss, trial in self._members
            if all(value <= goal for value, goal in zip(loss, goals, strict=True))
        )
        chosen = list(dict.fromkeys([*bests, *reaching[:1], *sorted(everyone)]))[:count]
        return [everyone[number] for number in sorted(chosen)]


class Scoreboard:
    """Counts, running trials, the best ones and the last failure.

    The best trial is Optuna's: infeasible trials do not count, and of equal ones the first to complete stays.
    """

    def __init__(self, directions: Sequence[StudyDirection]) -> None:
        self._single = len(directions) == 1
        self._sign = -1.0 if directions[0] == StudyDirection.MAXIMIZE else 1.0
        self._states: dict[int, TrialState] = {}
        self._copied: set[int] = set()
        self._first_missing = 0
        self._counts: Counter[TrialState] = Counter()
        self._seconds = dict.fromkeys(TrialState, 0.0)
        self._running: set[int] = set()
        self._waiting: set[int] = set()
        self._records: dict[int, tuple[FrozenTrial, TrialRecord]] = {}
        """The running trials when the summary was last made, and their records."""
        self._best: FrozenTrial | None = None
        self._since_best = 0
        self._front = ParetoFront(directions)
        self._failures: deque[FrozenTrial] = deque(maxlen=RECENT_FAILURES)
        self._caught = 0

    def note_all(self, trials: Iterable[FrozenTrial]) -> None:
        """Add a record's trials, in the order in which they ended."""
        for trial in sorted(trials, key=_end):
            self.note(trial)

    def note(self, trial: FrozenTrial) -> None:
        """Add a trial that is new or has another state than before."""
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
        if trial.duration is not None:
            self._seconds[trial.state] += trial.duration.total_seconds()
        _keep_if(trial.state == TrialState.RUNNING, self._running, trial.number)
        _keep_if(trial.state == TrialState.WAITING, self._waiting, trial.number)
        if trial.state == TrialState.COMPLETE:
            self._note_complete(trial, own=True)
        elif trial.state == TrialState.FAIL:
            self._failures.append(trial)
            failure = failure_of(trial)
            self._caught += failure is not None and failure.category == CAUGHT

    @property
    def running(self) -> list[int]:
        """The numbers of the running trials."""
        return sorted(self._running)

    @property
    def running_count(self) -> int:
        """How many trials are running."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """How many enqueued trials have not been started."""
        return len(self._waiting)

    @property
    def unfinished(self) -> list[int]:
        """The numbers of the trials that may still change."""
        return [*self._running, *self._waiting]

    def missing(self, count: int) -> list[int]:
        """Return the numbers below `count` of the trials that have not been taken in."""
        while self._is_known(self._first_missing):
            self._first_missing += 1
        return [number for number in range(self._first_missing, count) if not self._is_known(number)]

    @property
    def total(self) -> int:
        """How many trials there are, copies included."""
        return len(self._states) + len(self._copied)

    @property
    def started(self) -> int:
        """How many trials of the study's own are running or have ended."""
        return len(self._states) - self.waiting

    @property
    def counts(self) -> Counts:
        """Trials by state."""
        own = {state.name.lower(): self._counts[state] for state in TrialState}
        return Counts(**own, copied=len(self._copied))

    def summary(
        self, running: Iterable[FrozenTrial], targets: Sequence[float | None], *, exhausted: bool
    ) -> StudySummary:
        """Return the study's summary.

        Args:
            running: the running trials as they are now, by number.
            targets: the objectives' targets.
            exhausted: whether the sampler has nothing more to propose.
        """
        return StudySummary(
            counts=self.counts,
            durations=Durations(
                complete=self._seconds[TrialState.COMPLETE],
                pruned=self._seconds[TrialState.PRUNED],
                fail=self._seconds[TrialState.FAIL],
            ),
            running=self._records_of(running),
            best=record_of(self._best) if self._best else None,
            pareto_front=[]
            if self._single
            else [record_of(trial) for trial in self._front.first(FRONT_SIZE, targets)],
            front_size=len(self._front),
            trials_since_best=self._since_best,
            caught=self._caught,
            exhausted=exhausted and not self.waiting,
            recent_failures=[_without_traceback(record_of(trial)) for trial in self._failures],
        )

    def _is_known(self, number: int) -> bool:
        return number in self._states or number in self._copied

    def _records_of(self, running: Iterable[FrozenTrial]) -> list[TrialRecord]:
        """Return the records; those of trials that have not changed since the last time are the same ones."""
        before, self._records = self._records, {}
        for trial in running:
            known = before.get(trial.number)
            self._records[trial.number] = known if known and known[0] is trial else (trial, record_of(trial))
        return [record for _, record in self._records.values()]

    def _note_copied(self, trial: FrozenTrial) -> None:
        """Add a copy of another study's trial: it may be the best trial, and is not counted otherwise."""
        if trial.number not in self._copied:
            self._copied.add(trial.number)
            if trial.state == TrialState.COMPLETE:
                self._note_complete(trial, own=False)

    def _note_complete(self, trial: FrozenTrial, *, own: bool) -> None:
        feasible = all(value <= 0 for value in trial.constraints.values())
        if not self._single:
            if feasible:
                self._front.add(trial)
        elif feasible and (
            self._best is None or self._sign * trial.values[0] < self._sign * self._best.values[0]
        ):
            self._best, self._since_best = trial, 0
        elif own:
            self._since_best += 1


def _without_traceback(record: TrialRecord) -> TrialRecord:
    """A summary is read often, and a traceback may be long."""
    failure = record.failure and record.failure.model_copy(update={"traceback": None})
    return record.model_copy(update={"failure": failure})


def _end(trial: FrozenTrial) -> tuple[datetime, int]:
    return trial.datetime_complete or datetime.max, trial.number  # noqa: DTZ901  Optuna's times are naive


def _keep_if(belongs: bool, numbers: set[int], number: int) -> None:
    if belongs:
        numbers.add(number)
    else:
        numbers.discard(number)


def _dominates(one: list[float], other: list[float]) -> bool:
    return one != other and all(left <= right for left, right in zip(one, other, strict=True))
