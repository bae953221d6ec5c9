"""Studies, trials, Jobs and pods as tests need them: good by default, one line for what differs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from tuning_operator.kube.plan.actions import Action, Ask, Plan, Tell
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Diagnosis, Observation, Run
from tuning_operator.kube.plan.work import Refit, Trial, Work
from tuning_operator.kube.status.events import Event, new_events
from tuning_operator.kube.status.status import new_status
from tuning_operator.protocol import AskRequest, Counts, Failure, StudySummary, TellRequest, TrialRecord
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy, TuningStudyStatus
from tuning_operator.resource.times import rfc3339

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)
UID = "5a3d3f2e-0000-4000-8000-000000000001"
GPU = "nvidia.com/gpu"


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def body(
    name: str = "mnist", *, status: dict[str, Any] | None = None, generation: int = 1, **spec: Any
) -> dict[str, Any]:
    """A TuningStudy as the API server gives it."""
    trial = {
        "objective": "train:objective",
        "template": {"spec": {"containers": [{"name": "trainer", "image": "python:3.12",
                                              "resources": {"limits": {GPU: 1}}}]}},
    }  # fmt: skip
    base: dict[str, Any] = {
        "objectives": [{"metric": "accuracy", "direction": "maximize"}],
        "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
        "maxTrials": 10,
        "parallelism": 2,
    }
    trial |= spec.pop("trial", {})
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {
            "name": name,
            "namespace": "ml",
            "uid": UID,
            "generation": generation,
            "resourceVersion": "1",
        },
        "spec": {**base, **spec, "trial": trial},
        **({"status": status} if status else {}),
    }


def study(*, status: TuningStudyStatus | None = None, generation: int = 1, **spec: Any) -> TuningStudy:
    """A study that runs since a minute, unless `status` says otherwise."""
    given = TuningStudy.model_validate(body(generation=generation, **spec))
    return given.model_copy(update={"status": status if status is not None else running_status()})


def running_status(seconds: float = 60, **fields: Any) -> TuningStudyStatus:
    return TuningStudyStatus(**{"phase": "Running", "start_time": rfc3339(ago(seconds)), **fields})


def trial(number: int, state: str = "RUNNING", **fields: Any) -> TrialRecord:
    return TrialRecord(number=number, state=state, **fields)  # type: ignore[arg-type]


def summary(
    *running: TrialRecord | int, complete: int = 0, pruned: int = 0, fail: int = 0, **fields: Any
) -> StudySummary:
    trials = [trial(t) if isinstance(t, int) else t for t in running]
    counts = Counts(running=len(trials), complete=complete, pruned=pruned, fail=fail)
    return StudySummary(**{"counts": counts, "running": trials, "leaving": [], **fields})


def seen(
    summary: StudySummary | None, runs: dict[int, Run] | dict[Work, Run] | None = None, **fields: Any
) -> Observation:
    """An observation; a run's key may be a trial's number."""
    by_work = {Trial(work) if isinstance(work, int) else work: run for work, run in (runs or {}).items()}
    return Observation(summary, by_work, **fields)


def diagnosis(
    category: str, since: datetime | None = None, message: str = "it is so", remedy: str = "Fix it."
) -> Diagnosis:
    return Diagnosis(Failure(category=category, message=message, remedy=remedy), since)


def ask(parallelism: int, max_trials: int, *leaving: int) -> Ask:
    return Ask(AskRequest(parallelism=parallelism, max_trials=max_trials, leaving=list(leaving)))


def tell(work: Trial | Refit | int, state: str, failure: Failure | None = None) -> Tell:
    request = TellRequest(state=state, failure=failure)  # type: ignore[arg-type]
    return Tell(Trial(work) if isinstance(work, int) else work, request)


@dataclass(frozen=True)
class Decision:
    """A plan, and the status and Events that follow from it."""

    plan: Plan
    status: TuningStudyStatus
    events: tuple[Event, ...]
    now: datetime

    @property
    def actions(self) -> tuple[Action, ...]:
        return self.plan.actions

    @property
    def requeue_after(self) -> float | None:
        """As a pass does: at once when it acted."""
        if self.actions:
            return 0
        return (self.plan.wake - self.now).total_seconds() if self.plan.wake else None


def decision(study: TuningStudy, seen: Observation, now: datetime) -> Decision:
    """What a pass decides about a study and publishes."""
    plan = decide(study, seen, now)
    status = new_status(study, seen, plan, now)
    return Decision(plan, status, new_events(study.status, status, seen.summary or StudySummary()), now)


def job(trial: int = 0, *, name: str = "mnist", **status: Any) -> dict[str, Any]:
    labels = {names.LABEL_STUDY: name, names.LABEL_TRIAL: str(trial), names.LABEL_ROLE: "trial"}
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": name,
        "uid": UID,
        "controller": True,
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{name}-{trial}", "namespace": "ml", "uid": f"job-{trial}", "labels": labels,
                     "ownerReferences": [owner], "creationTimestamp": rfc3339(ago(20))},
        "status": status,
    }  # fmt: skip


def failed_job(trial: int = 0, reason: str = "BackoffLimitExceeded") -> dict[str, Any]:
    return job(
        trial,
        conditions=[{"type": "Failed", "status": "True", "reason": reason, "message": "the Job failed"}],
    )


def pod(
    trial: int = 0, *, age: float = 10, spec: dict[str, Any] | None = None, **status: Any
) -> dict[str, Any]:
    labels = {names.LABEL_STUDY: "mnist", names.LABEL_TRIAL: str(trial), names.LABEL_ROLE: "trial"}
    containers = [{"name": "trainer", "image": "python:3.12", "resources": {"limits": {GPU: 4}}}]
    return {
        "metadata": {"name": f"mnist-{trial}-abcde", "namespace": "ml", "uid": f"pod-{trial}",
                     "labels": labels, "creationTimestamp": rfc3339(ago(age)),
                     "ownerReferences": [{"kind": "Job", "name": f"mnist-{trial}", "uid": f"job-{trial}"}]},
        "spec": {"containers": containers, **(spec or {})},
        "status": status,
    }  # fmt: skip


def waiting(reason: str, message: str = "", container: str = "trainer") -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {"containerStatuses": [{"name": container, "image": "python:3.12", "state": state}]}


def terminated(
    exit_code: int, reason: str = "Error", message: str = "", container: str = "trainer"
) -> dict[str, Any]:
    state = {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}
    return {
        "phase": "Failed",
        "containerStatuses": [{"name": container, "image": "python:3.12", "state": state}],
    }
