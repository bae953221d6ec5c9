"""Hands running trials to workers: pods that take one trial after another."""

from collections.abc import Iterable

from optuna.trial import FrozenTrial, TrialState

from tuning_operator.protocol import StudyDefinition, WorkReply, WorkRequest
from tuning_operator.resource import names
from tuning_operator.studies.study.feed import Waiters
from tuning_operator.studies.study.optuna_study import ServedStudy, id_of
from tuning_operator.studies.study.records import PODS, failure_of, pods_of, view_of


class Workers(Waiters):
    """Which pods have the running trials of a study. A trial remembers its pods."""

    def __init__(self, study: ServedStudy) -> None:
        super().__init__()
        self.leaving: frozenset[int] = frozenset()
        """The workers that get no further trials."""
        self._study = study
        self._pods: dict[tuple[str, int] | None, str] = {}
        """The pod that sent the last request, by worker."""

    def note(self, pod: str) -> None:
        """Remember that a pod has sent a request."""
        self._pods[names.worker_of_pod(pod)] = pod

    def is_replaced(self, pod: str) -> bool:
        """Return whether another pod of the same worker has sent a request since."""
        return self._pods[names.worker_of_pod(pod)] != pod

    def has(self, pod: str, number: int) -> bool:
        """Return whether a pod has a trial, or was the last to have it."""
        try:
            return pods_of(self._study.frozen(number))[-1:] == [pod]
        except KeyError:
            return False

    def assign(
        self, pod: str, request: WorkRequest, definition: StudyDefinition, running: Iterable[int]
    ) -> WorkReply:
        """Give trials to a pod; the writes are the caller's. Raises UpdateFinishedTrialError.

        `running` are the numbers of all running trials. A pod gets the trials of its predecessor in the slot,
        then those that no pod has, by number, unless its worker is to leave.
        """
        worker, asked = names.worker_of_pod(pod), set(request.running)
        start: list[int] = []
        kept: set[int] = set()
        free: list[FrozenTrial] = []
        room = 0 if worker and worker[1] in self.leaving else request.capacity
        for trial in map(self._study.frozen, sorted(running)):
            pods = pods_of(trial)
            if trial.state != TrialState.RUNNING:  # a thread has just ended it
                continue
            if not pods:
                free.append(trial)
            elif names.worker_of_pod(pods[-1]) == worker and pod not in pods[:-1]:
                room -= 1
                self._give(trial, pods, pod)
                (kept.add if trial.number in asked else start.append)(trial.number)
        for trial in free[: max(room, 0)]:
            self._give(trial, [], pod)
            start.append(trial.number)
        ended = sorted(asked - kept)
        stopped = [number for number in ended if self._is_stopped(number)]
        views = [view_of(self._study.frozen(number), definition) for number in start]
        return WorkReply.model_construct(start=views, ended=ended, stopped=stopped)

    def check(self, request: WorkRequest) -> None:
        """Check that the trials of a request exist. Raises NotFound."""
        for number in request.running:
            self._study.find_trial(number)

    def _is_stopped(self, number: int) -> bool:
        """Return whether the operator has ended a trial: it gives a reason, and a pod that is pruned none."""
        trial = self._study.frozen(number)
        return trial.state == TrialState.PRUNED and failure_of(trial) is not None

    def _give(self, trial: FrozenTrial, pods: list[str], pod: str) -> None:
        if pods[-1:] != [pod]:
            self._study.storage.set_trial_system_attr(id_of(trial), PODS, [*pods, pod])
