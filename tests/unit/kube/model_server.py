"""A study server in memory: the protocol's promises to the operator, and nothing of Optuna."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tuning_operator.kube.plan.work import Refit, Trial
from tuning_operator.kube.ports.study_server import DefinitionRefused, StudyServerUnavailable
from tuning_operator.protocol import (
    AskRequest,
    Changes,
    Counts,
    Failure,
    Problem,
    RefitRecord,
    RefitRequest,
    StudyDefinition,
    StudySummary,
    TellRequest,
    TrialRecord,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from tuning_operator.protocol import StudyKey


class ModelServer:
    """Keeps the trials of studies; asserts what no client may break."""

    def __init__(self) -> None:
        self.trials: dict[StudyKey, list[TrialRecord]] = {}
        self.leaving: dict[StudyKey, list[int]] = {}
        self.refits: dict[StudyKey, RefitRecord] = {}
        self.begun: list[RefitRequest] = []
        self.on_begin: Callable[[RefitRequest], None] = lambda _: None
        self.continued: dict[StudyKey, int] = {}
        self.definitions: dict[StudyKey, StudyDefinition] = {}
        self.forgotten: list[StudyKey] = []
        self.namespaces_deleted = 0
        self.namespaces_forgotten: list[tuple[str, str]] = []
        self.refuses: list[Problem] = []
        self.per_ask = 16

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
        if self.refuses:
            raise DefinitionRefused(self.refuses)
        before = self.definitions.get(key)
        if before and before.uid != definition.uid:
            self._end_all(key)
            self.continued[key] = len(self.trials[key])
        self.definitions[key] = definition
        self.trials.setdefault(key, [])
        return self.summarize(key)

    async def summary(self, key: StudyKey) -> StudySummary | None:
        return self.summarize(key) if key in self.trials else None

    async def ask(self, key: StudyKey, request: AskRequest) -> StudySummary:
        if key not in self.trials:
            raise StudyServerUnavailable("404: no such study")
        self.leaving[key] = request.leaving
        trials, started = self.trials[key], 0
        while (
            started < self.per_ask
            and len(trials) < request.max_trials
            and sum(t.state == "RUNNING" for t in trials) < request.parallelism
        ):
            trials.append(TrialRecord(number=len(trials), state="RUNNING"))
            started += 1
        return self.summarize(key)

    async def tell(self, key: StudyKey, work: Trial | Refit, request: TellRequest) -> TrialRecord:
        if isinstance(work, Refit):
            return self._tell_refit(key, request)
        self.end(key, work.number, request.state, (request.values or [None])[0], request.failure)
        return self.trials[key][work.number]

    async def begin_refit(self, key: StudyKey, request: RefitRequest) -> StudySummary:
        old = self.refits.get(key)
        if old and (old.trial, old.digest) == (request.trial, request.digest):
            return self.summarize(key)
        assert self.trials[key][request.trial].state == "COMPLETE"
        self.on_begin(request)
        self.begun.append(request)
        self.refits[key] = RefitRecord(trial=request.trial, digest=request.digest, state="RUNNING")
        return self.summarize(key)

    def _tell_refit(self, key: StudyKey, request: TellRequest) -> TrialRecord:
        failure = request.failure or self.refits[key].failure if request.state == "FAIL" else None
        self._change_refit(key, state=request.state, values=request.values, failure=failure)
        record = self.refits[key]
        return TrialRecord(number=record.trial, state=record.state, failure=record.failure)

    async def forget(self, key: StudyKey, *, namespace_deleted: bool = False) -> None:
        self.forgotten.append(key)
        self.namespaces_deleted += namespace_deleted
        self._end_all(key)

    async def namespaces(self) -> list[tuple[str, str]]:
        return [("ml", "namespace-uid")]

    async def forget_namespace(self, namespace: str, uid: str) -> None:
        self.namespaces_forgotten.append((namespace, uid))

    def _end_all(self, key: StudyKey) -> None:
        """The study's resource is gone: no trial and no refit of it fails by that."""
        if key in self.refits and self.refits[key].state == "RUNNING":
            del self.refits[key]
        for trial in self.trials.get(key, []):
            self.end(key, trial.number, "PRUNED", failure=Failure(category="StudyDeleted", message="deleted"))

    async def changes(self, after: str | None, timeout: float) -> Changes:  # noqa: ASYNC109
        return Changes(cursor="1", studies=[(key.namespace, key.name) for key in self.trials])

    # --- what trial pods do

    def end(
        self,
        key: StudyKey,
        trial: int,
        state: str,
        value: float | None = None,
        failure: Failure | None = None,
    ) -> None:
        """The first telling holds."""
        old = self.trials[key][trial]
        if old.state == "RUNNING":
            values = [value] if value is not None else None
            update = {"state": state, "values": values, "failure": failure}
            self.trials[key][trial] = old.model_copy(update=update)

    def take(self, key: StudyKey, slot: int, capacity: int) -> list[int]:
        """Give a pod of a worker what the study server would; return all trials that it has then."""
        held = [trial.number for trial in self.running(key) if trial.worker == slot]
        leaves = slot in self.leaving.get(key, [])
        free = [trial.number for trial in self.running(key) if trial.worker is None and not leaves]
        held += free[: max(capacity - len(held), 0)]
        for number in held:
            old = self.trials[key][number]
            self.trials[key][number] = old.model_copy(update={"worker": slot, "pods": old.pods + 1})
        return held

    def request_prune(self, key: StudyKey, trial: int, now: datetime) -> None:
        old = self.trials[key][trial]
        if old.state == "RUNNING" and old.prune_requested is None:
            self.trials[key][trial] = old.model_copy(update={"prune_requested": now})

    def fail_try(self, key: StudyKey, failure: Failure) -> None:
        """A pod of the refit reports FAIL: the state stays until the operator records the end."""
        self._change_refit(key, failure=failure)

    def complete_refit(self, key: StudyKey, **attrs: Any) -> None:
        self._change_refit(key, state="COMPLETE", values=[0.9], user_attrs=attrs, failure=None)

    def _change_refit(self, key: StudyKey, **update: Any) -> None:
        if self.refits[key].state == "RUNNING":
            self.refits[key] = self.refits[key].model_copy(update=update)

    def running(self, key: StudyKey) -> list[TrialRecord]:
        return [trial for trial in self.trials.get(key, []) if trial.state == "RUNNING"]

    def summarize(self, key: StudyKey) -> StudySummary:
        trials = self.trials[key]
        by_state = {
            state: [t for t in trials if t.state == state] for state in ("COMPLETE", "PRUNED", "FAIL")
        }
        complete, failed = by_state["COMPLETE"], by_state["FAIL"]
        best = max(complete, key=lambda t: (t.values or [0])[0], default=None)
        counts = Counts(
            running=len(self.running(key)),
            complete=len(complete),
            pruned=len(by_state["PRUNED"]),
            fail=len(failed),
        )
        return StudySummary(
            uid=self.definitions[key].uid,
            continued=self.continued.get(key),
            counts=counts,
            running=self.running(key),
            best=best,
            trials_since_best=sum(1 for t in complete if best and t.number > best.number),
            recent_failures=failed[-10:],
            refit=self.refits.get(key),
            leaving=self.leaving.get(key, []),
        )
