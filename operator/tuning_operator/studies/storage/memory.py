"""The studies in memory: reads are answered from here.

Finished trials are shared with readers and never changed; a trial is changed by putting another in its place.
"""

import json
import threading
from collections.abc import Callable, Container, Iterable
from typing import Any

from optuna.distributions import BaseDistribution  # noqa: TC002  annotations are read at run time
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

from tuning_operator.studies.storage.batch import Known
from tuning_operator.studies.storage.changes import AttrKind, Change, SetStudyAttr, TrialChange
from tuning_operator.studies.storage.loader import Header, StudyAttrs


class StudyRecord:
    """One study. Hold `lock` to read or change more than one attribute; never during SQL."""

    def __init__(self, header: Header) -> None:
        self.lock = threading.RLock()
        self.loading = threading.Lock()
        """Held by the thread that reads the trials for the first time."""
        self.loaded = False
        self.study_id = header.study_id
        self.name = header.name
        self.directions = header.directions
        self.attrs = header.attrs
        self.shard = header.shard
        self.trials: dict[int, FrozenTrial] = {}
        """By id, in the order of the ids, which is that of the numbers."""
        self.ids: dict[int, int] = {}
        """The trials' ids by their numbers."""
        self.unfinished: dict[int, None] = {}
        """The ids of the WAITING and RUNNING trials."""
        self.counts = dict.fromkeys(TrialState, 0)
        self.best: FrozenTrial | None = None
        self.distributions: dict[str, BaseDistribution] = {}
        """By parameter, that of the first trial that has it."""
        self.conflicts = 0
        """How often a write to a trial was refused, and the trial put back as the database has it."""
        self._last_id = -1
        self._last_change: dict[tuple[AttrKind, str] | int, int] = {}

    def add(self, trial: FrozenTrial) -> None:
        """Add a trial, unless it is here already."""
        trial_id = id_of(trial)
        if trial_id in self.trials:
            return
        self.ids[trial.number] = trial_id
        self._last_id = max(self._last_id, trial_id)
        self._put(trial)

    def replace(self, trial: FrozenTrial) -> None:
        """Put a trial in the place of the one with its id, where there is one."""
        if before := self.trials.get(id_of(trial)):
            self.counts[before.state] -= 1
            self._put(trial)
            if before is self.best:
                self.best = min(filter(self._is_ranked, self.trials.values()), key=self._rank, default=None)

    def replace_by_foreign(self, trial: FrozenTrial) -> None:
        """Take a trial as another process left it; it is theirs from now on."""
        self._last_change.pop(id_of(trial), None)
        self.replace(trial)

    def _put(self, trial: FrozenTrial) -> None:
        trial_id = id_of(trial)
        self.trials[trial_id] = trial
        self.counts[trial.state] += 1
        for name, distribution in trial.distributions.items():
            self.distributions.setdefault(name, distribution)
        if not trial.state.is_finished():
            self.unfinished.setdefault(trial_id)
            return
        self.unfinished.pop(trial_id, None)
        if self._is_ranked(trial) and (self.best is None or self._rank(trial) < self._rank(self.best)):
            self.best = trial

    def _is_ranked(self, trial: FrozenTrial) -> bool:
        return trial.state == TrialState.COMPLETE and len(self.directions) == 1 and bool(trial.values)

    def _rank(self, trial: FrozenTrial) -> tuple[bool, float, int]:
        [value] = trial.values
        if self.directions[0] == StudyDirection.MAXIMIZE:
            value = -value
        is_nan = value != value  # NaN
        return is_nan, 0.0 if is_nan else value, trial.number

    def select(self, states: Container[TrialState] | None) -> list[FrozenTrial]:
        """Return the trials in these states, by id; the unfinished without looking at the others."""
        if states is None:
            return list(self.trials.values())
        wanted = tuple(state for state in TrialState if state in states)
        if any(state.is_finished() for state in wanted):
            return [trial for trial in self.trials.values() if trial.state in wanted]
        unfinished = [self.trials[trial_id] for trial_id in sorted(self.unfinished)]
        return [trial for trial in unfinished if trial.state in wanted]

    def known_trials(self) -> Known:
        """Return how many trials are here, and the highest id."""
        return Known(len(self.trials), self._last_id)

    def note_change(self, change: Change) -> None:
        """Remember that a change is ours, so that an older read of the database cannot undo it."""
        if isinstance(change, SetStudyAttr):
            self._last_change[change.kind, change.key] = change.seq
        elif isinstance(change, TrialChange):
            self.note_ours(change.trial_id, change.seq)

    def note_ours(self, trial_id: int, seq: int) -> None:
        """Remember that a trial is ours, by the change of that number."""
        self._last_change[trial_id] = seq

    def changed_since(self, what: tuple[AttrKind, str] | int, settled: float) -> bool:
        """Whether an attribute or a trial (by id) has a change of ours that was not settled at that time."""
        return self._last_change.get(what, 0) > settled

    def is_settled(self, settled: float) -> bool:
        """Whether all changes of ours were settled at that time."""
        return max(self._last_change.values(), default=0) <= settled

    def is_foreign(self, trial_id: int) -> bool:
        """Whether a trial is one that we never wrote to."""
        return trial_id not in self._last_change

    def set_attr(self, kind: AttrKind, key: str, value: Any) -> None:
        """Set a study's attribute; a reader of the former ones is not disturbed."""
        self.attrs = self.attrs | {kind: self.attrs[kind] | {key: value}}

    def snapshot(self) -> tuple[Header, list[FrozenTrial]]:
        """Return all that is known of the study."""
        with self.lock:
            return Header(self.study_id, self.name, self.directions, self.attrs), list(self.trials.values())

    def freeze(self) -> FrozenStudy:
        """Return the study as Optuna lists it."""
        with self.lock:
            return FrozenStudy(
                study_name=self.name,
                direction=None,
                directions=list(self.directions),
                user_attrs=dict(self.attrs["user"]),
                system_attrs=dict(self.attrs["system"]),
                study_id=self.study_id,
            )


class Memory:
    """The studies that were read, and which study each of their trials is of."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[int, StudyRecord] = {}
        self._names: dict[str, int] = {}
        self._of_trial: dict[int, StudyRecord] = {}
        self._gone: set[int] = set()

    def study(self, study_id: int) -> StudyRecord | None:
        """Return a study that is in memory."""
        return self._records.get(study_id)

    def all(self) -> list[StudyRecord]:
        """Return the studies that are in memory, by id."""
        with self._lock:
            return sorted(self._records.values(), key=lambda record: record.study_id)

    def gone(self) -> list[int]:
        """Return the ids of the studies that were deleted."""
        with self._lock:
            return sorted(self._gone)

    def id_of_name(self, name: str) -> int | None:
        """Return the id of a study that is in memory."""
        return self._names.get(name)

    def of_trial(self, trial_id: int) -> StudyRecord | None:
        """Return the study of a trial that is in memory."""
        return self._of_trial.get(trial_id)

    def take_in(self, header: Header) -> StudyRecord | None:
        """Return the study, new in memory unless it is there; None for one that was dropped."""
        with self._lock:
            if header.study_id in self._gone:  # it was read before it was deleted
                return None
            record = self._records.setdefault(header.study_id, StudyRecord(header))
            self._names[header.name] = header.study_id
        return record

    def fill(self, record: StudyRecord, trials: Iterable[FrozenTrial]) -> None:
        """Give a study trials that are new."""
        with record.lock:
            for trial in trials:
                record.add(trial)
                self._of_trial[id_of(trial)] = record

    def drop(self, study_id: int) -> None:
        """Forget a study that is deleted: an id is never used again."""
        with self._lock:
            self._gone.add(study_id)
            record = self._records.get(study_id)
        if record is not None:
            self.release(record)

    def release(self, record: StudyRecord) -> None:
        """Forget a study; it can be read again."""
        with self._lock:
            self._records.pop(record.study_id, None)
            self._names.pop(record.name, None)
        with record.lock:
            for trial_id in record.trials:  # the record keeps them, for a thread that is reading it
                self._of_trial.pop(trial_id, None)

    def clear(self) -> None:
        """Forget everything; it can be read again."""
        with self._lock:
            self._records.clear()
            self._names.clear()
            self._of_trial.clear()


def id_of(trial: FrozenTrial) -> int:
    """Return a trial's id."""
    return trial._trial_id  # noqa: SLF001  Optuna has no other way to it


def put_back_trial(record: StudyRecord, fresh: FrozenTrial, rest: Callable[[], list[Change]]) -> None:
    """Take a trial as the database has it, and what is still to be written to it."""
    with record.lock:
        for change in rest():
            if isinstance(change, TrialChange) and change.trial_id == id_of(fresh):
                fresh = fresh if fresh.state.is_finished() else change.apply(fresh)
        record.replace_by_foreign(fresh)
        record.conflicts += 1


def put_back_attrs(record: StudyRecord, fresh: StudyAttrs, rest: Callable[[], list[Change]]) -> None:
    """Take a study's attributes as the database has them, and what is still to be written to them."""
    with record.lock:
        record.attrs = fresh
        for change in rest():
            if isinstance(change, SetStudyAttr) and change.study_id == record.study_id:
                record.set_attr(change.kind, change.key, json.loads(change.text))
