"""How fast studies get from one trial to the next, measured at the requests of their pods."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from tuning_operator.protocol import StudyKey, StudySummary, TrialRecord
from tuning_operator.studies.metrics import Metrics

MOST_FREE = 1000
"""The slots of a study that are remembered as free: those of a suspended study stay so."""


@dataclass
class _Study:
    declared: float | None
    """When it was created; None once its first trial has begun, and for a study from before a restart."""
    running: set[int] = field(default_factory=set)
    """The trials whose pods have made a request."""
    freed: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_FREE))
    """When trials ended whose place no other trial has taken yet."""


class Pace:
    """Observes the times. It knows nothing of what happened before the server was started."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._clock = metrics, clock
        self._studies: dict[StudyKey, _Study] = {}

    def declared(self, key: StudyKey, summary: StudySummary) -> None:
        """A study was created or updated."""
        counts = summary.counts
        has_begun = counts.running or counts.complete or counts.pruned or counts.fail
        self._studies.setdefault(key, _Study(None if has_begun else self._clock()))

    def seen(self, key: StudyKey, trial: TrialRecord) -> None:
        """A pod asked for its trial, for the first time or again."""
        study = self._studies.setdefault(key, _Study(None))
        if trial.finished or trial.number in study.running:
            return
        study.running.add(trial.number)
        if study.declared is not None:
            self._metrics.first_trial.observe(self._clock() - study.declared)
            study.declared = None
        elif study.freed:
            self._metrics.turnaround.observe(self._clock() - study.freed.popleft())

    def ended(self, key: StudyKey, trial: TrialRecord) -> None:
        """A trial has a result, for the first time or again."""
        study = self._studies.get(key)
        if study is None or trial.number not in study.running:
            return
        study.running.remove(trial.number)
        study.freed.append(self._clock())
        if trial.state == "PRUNED" and trial.prune_requested and trial.finished:
            reaction = trial.finished - trial.prune_requested
            self._metrics.prune_reaction.observe(max(0.0, reaction.total_seconds()))

    def forget(self, key: StudyKey) -> None:
        """A study is gone."""
        self._studies.pop(key, None)
