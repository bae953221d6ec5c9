"""A small world for the operator: a cluster, a study server, pods that do as a test says, and its time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.loop.reconciler import Reconciler
from tuning_operator.kube.loop.result import ActionsFailed
from tuning_operator.kube.plan.validation import check
from tuning_operator.kube.ports.act import Actor
from tuning_operator.kube.ports.jobs.job_runs import JobRuns
from tuning_operator.kube.ports.kube_api import KubeError
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.ports.runs import RunsUnavailable
from tuning_operator.kube.ports.study_server import StudyServerUnavailable
from tuning_operator.protocol import Failure, StudyKey
from tuning_operator.resource import names
from tuning_operator.resource.times import rfc3339

from tests.unit.kube.builders import NOW, body, pod, waiting
from tests.unit.kube.fake_kube import FakeKube
from tests.unit.kube.faults import Faults, Killed
from tests.unit.kube.model_server import ModelServer

KEY = StudyKey("ml", "mnist")
REFIT = "mnist-refit"
RUNTIME = Runtime(b"zip", "https://studies.tuning:8443", "PEM")
FAILED = [{"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": "the pod failed"}]
COMPLETE = [{"type": "Complete", "status": "True"}]


class World:
    """One study and its operator."""

    def __init__(self, **spec: Any) -> None:
        self.kube, self.server, self.now = FakeKube(), ModelServer(), NOW
        self.kube.put(body(**spec))
        self.kube.admit = self._admit
        self.quota: int | None = None
        """How many Jobs the namespace may have that have not ended."""
        self.denied = False
        """Whether an admission policy refuses all Jobs."""
        self.installation: str | None = None
        self.runtime = RUNTIME
        self.start_operator()

    def clock(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def start_operator(self, faults: Faults | None = None) -> None:
        """Restart the operator's process: it knows nothing but what it reads."""
        kube = faults.around(self.kube) if faults else self.kube
        server = faults.around(self.server) if faults else self.server
        runs = JobRuns(kube, lambda _: self.runtime, self.clock)
        observer = Observer(kube, runs, server, check)
        actor = Actor(runs, server)
        self.reconciler = Reconciler(kube, server, observer, actor, self.clock, self.installation)

    async def tick(self) -> float | None:
        """Do one pass, whatever comes of it; return in how many seconds the operator wants the next one."""
        try:
            result = await self.reconciler.reconcile(KEY)
        except (RunsUnavailable, StudyServerUnavailable, ActionsFailed):
            return 1.0
        except BaseException as error:
            if not _killed(error):
                raise
            self.start_operator()
            return 0.0
        match result.outcome:
            case "gone":
                return None
            case "no_progress":
                return 1.0
        return float("inf") if result.after is None else result.after

    async def settle(self, passes: int = 60) -> None:
        """Do passes until the operator has nothing to do at this moment."""
        for _ in range(passes):
            if (await self.tick()) != 0:
                return
        raise AssertionError("the operator does not come to rest")

    def _admit(self, created: dict[str, Any]) -> None:
        if created["kind"] != "Job":
            return
        name = created["metadata"]["name"]
        if self.denied:
            raise KubeError(403, "Forbidden", f'admission webhook "policy" denied the request: {name}')
        jobs = (o for (kind, _, _), o in self.kube.objects.items() if kind == "Job")
        unfinished = [job for job in jobs if not job.get("status", {}).get("conditions")]
        if self.quota is not None and len(unfinished) >= self.quota:
            raise KubeError(403, "Forbidden", f'jobs.batch "{name}" is forbidden: exceeded quota: jobs')

    # --- pods and their Jobs

    @property
    def jobs(self) -> dict[int, dict[str, Any]]:
        jobs = (o for (kind, _, _), o in self.kube.objects.items() if kind == "Job")
        found = [job for job in jobs if job["metadata"]["labels"].get(names.LABEL_ROLE) == names.ROLE_TRIAL]
        return {int(job["metadata"]["labels"][names.LABEL_TRIAL]): job for job in found}

    def alive(self) -> list[int]:
        """Return the trials whose Jobs have not ended."""
        return sorted(n for n, job in self.jobs.items() if not job.get("status", {}).get("conditions"))

    def begin(self, trial: int) -> None:
        self._run(f"mnist-{trial}")

    def succeed(self, trial: int, state: str = "COMPLETE", value: float = 0.5) -> None:
        """The pod reports its result, and its Job completes."""
        self.server.end(KEY, trial, state, value if state == "COMPLETE" else None)
        self.end_job(trial, succeeded=1, conditions=COMPLETE)

    def crash(self, trial: int) -> None:
        """The pod ends without a report."""
        self.end_job(trial, failed=1, conditions=FAILED)

    def lose(self, trial: int) -> None:
        """The pod is deleted while it runs, and killed before it has ended by itself."""
        self.end_job(trial, failed=1, conditions=[{**FAILED[0], "reason": "PodFailurePolicy"}])

    def fail_pull(self, trial: int) -> None:
        """The image of the pod can't be pulled."""
        waits = {**pod(trial, phase="Pending", **waiting("ImagePullBackOff", "Back-off")), "kind": "Pod"}
        self.kube.put(waits)
        event = {
            "kind": "Event",
            "metadata": {"name": f"{waits['metadata']['name']}.pull", "namespace": "ml"},
            "involvedObject": {"kind": "Pod", "uid": waits["metadata"]["uid"]},
            "type": "Warning",
            "reason": "Failed",
            "message": 'Failed to pull image "python:3.12": not found',
            "firstTimestamp": rfc3339(self.now),
            "lastTimestamp": rfc3339(self.now),
        }
        self.kube.put(event)

    def reject(self, trial: int, node: str, reason: str = "UnexpectedAdmissionError") -> None:
        """A node rejects the pod; the Job makes another one after a while."""
        number = sum(kind == "Pod" for kind, _, _ in self.kube.objects)
        rejected = pod(
            trial,
            age=number,
            spec={"nodeName": node},
            phase="Failed",
            reason=reason,
            message="no healthy devices",
        )
        rejected["metadata"] |= {
            "name": f"mnist-{trial}-{number}",
            "uid": f"pod-{trial}-{number}",
            "creationTimestamp": rfc3339(self.now),
            "ownerReferences": [self.owner(trial)],
        }
        self.kube.put({**rejected, "kind": "Pod"})

    def end_job(self, trial: int, **status: Any) -> None:
        self._end_run(f"mnist-{trial}", **status)

    def _run(self, name: str) -> None:
        """A Job's pod runs."""
        metadata = self.jobs_named(name)["metadata"]
        owner = {"kind": "Job", "name": name, "uid": metadata["uid"]}
        running = pod(age=0, phase="Running")
        running["metadata"] |= {
            "name": f"{name}-run",
            "uid": f"pod-of-{metadata['uid']}",
            "labels": metadata["labels"],
            "ownerReferences": [owner],
        }
        self.kube.put({**running, "kind": "Pod"})
        self.kube.set_status("Job", "ml", name, active=1, ready=1)

    def _end_run(self, name: str, **status: Any) -> None:
        """A Job's pod is gone."""
        self.kube.remove("Pod", "ml", f"{name}-run")
        self.kube.set_status("Job", "ml", name, active=0, ready=0, **status)

    def delete_job(self, trial: int) -> None:
        self.kube.remove("Job", "ml", f"mnist-{trial}")

    def owner(self, trial: int) -> dict[str, Any]:
        """Return the owner reference of a pod of the trial's Job."""
        name = f"mnist-{trial}"
        return {"kind": "Job", "name": name, "uid": self.jobs_named(name)["metadata"]["uid"]}

    def jobs_named(self, name: str) -> dict[str, Any]:
        return self.kube.objects["Job", "ml", name]

    # --- the refit's pods and their Job

    @property
    def refit(self) -> dict[str, Any] | None:
        return self.kube.objects.get(("Job", "ml", REFIT))

    def refit_lives(self) -> bool:
        """Return whether the refit's Job has or may get a pod."""
        return self.refit is not None and not self.refit.get("status", {}).get("conditions")

    def begin_refit(self) -> None:
        self._run(REFIT)

    def fail_attempt(self, message: str = "ValueError: boom") -> None:
        """A pod of the refit reports its failure and ends; the Job waits before it makes another."""
        self.server.fail_try(KEY, Failure(category="Exception", message=message, traceback="..."))
        self._end_run(REFIT, failed=1)

    def complete_refit(self, **attrs: Any) -> None:
        """The refit's pod reports its result, and its Job completes."""
        self.server.complete_refit(KEY, **attrs)
        self.end_refit(succeeded=1, conditions=COMPLETE)

    def end_refit(self, **status: Any) -> None:
        self._end_run(REFIT, **status)

    def remove_refit(self) -> None:
        """The Job is gone, its pods with it: deleted by a user, or at the end of its deletion."""
        self.kube.remove("Job", "ml", REFIT)

    # --- what the user sees and does

    @property
    def status(self) -> dict[str, Any]:
        return self.kube.study().get("status", {})

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def edit(self, **spec: Any) -> None:
        self.kube.edit(names.KIND, "ml", "mnist", **spec)


def _killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(Killed) is not None
    return isinstance(error, Killed)
