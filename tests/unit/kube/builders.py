"""Studies, trials, Jobs and pods as tests need them: good by default, one line for what differs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tuning_operator.kube.plan.observation import Observation, Run, Trouble
from tuning_operator.kube.status.conditions import rfc3339
from tuning_operator.protocol import Counts, Failure, StudySummary, TrialRecord
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy, TuningStudyStatus

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
    return StudySummary(counts=counts, running=trials, **fields)


def seen(standing: StudySummary | None, *runs: Run, **fields: Any) -> Observation:
    return Observation(standing, {run.trial: run for run in runs}, **fields)


def trouble(
    category: str, since: datetime | None = None, message: str = "it is so", remedy: str = "Mend it."
) -> Trouble:
    return Trouble(Failure(category=category, message=message, remedy=remedy), since)


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
                     "labels": labels, "creationTimestamp": rfc3339(ago(age))},
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
