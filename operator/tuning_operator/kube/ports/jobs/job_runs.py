"""Runs as Jobs of a cluster. The number of requests does not depend on the number of runs."""

import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from tuning_operator.kube.jobs.contention import gpu_resources
from tuning_operator.kube.jobs.evidence import ENDING_DEADLINE, Evidence, exited_at
from tuning_operator.kube.jobs.manifests import job
from tuning_operator.kube.jobs.run_state import belongs_to, is_of_a_study
from tuning_operator.kube.jobs.runtime import Runtime
from tuning_operator.kube.jobs.templates import (
    fields_of,
    template_problems,
    trainer_problems,
    unreadable,
    why_refused,
)
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.work import Refit, Trial, Work, program
from tuning_operator.kube.ports.jobs.capacity import Nodes, WaitingPods
from tuning_operator.kube.ports.jobs.config_maps import ConfigMaps, starts_report_refusals
from tuning_operator.kube.ports.jobs.examine import Examiner
from tuning_operator.kube.ports.jobs.mirror import Mirror
from tuning_operator.kube.ports.jobs.namespaces import Namespaces
from tuning_operator.kube.ports.jobs.study_objects import StudyObjects
from tuning_operator.kube.ports.kube_api import KubeApi, KubeError
from tuning_operator.kube.ports.kubernetes import nearest_field
from tuning_operator.kube.ports.runs import RunRefused, RunsUnavailable, key_of
from tuning_operator.protocol import Failure, Problem, StudyKey
from tuning_operator.resource.study import TuningStudy

JOB_QUOTA = re.compile(r"exceeded quota.*\b(count/)?jobs\.batch=", re.DOTALL)
EVERYWHERE = ("",)
"""The namespaces of an operator that is not limited to some."""


class JobRuns:
    """Runs as Jobs.

    Remembers which ConfigMaps exist, and for minutes which nodes reject pods and how big nodes are.
    """

    def __init__(
        self,
        kube: KubeApi,
        runtime: Callable[[StudyKey], Runtime],
        clock: Callable[[], datetime],
        namespaces: Collection[str] = (),
    ) -> None:
        """Create them.

        Args:
            kube: the API server.
            runtime: what the Jobs of a study need to know of this installation.
            clock: returns the time.
            namespaces: where studies are; empty: everywhere.
        """
        self._kube, self._runtime = kube, runtime
        nodes = Nodes(kube, clock)
        self._mirror = Mirror(kube, namespaces or EVERYWHERE)
        self._objects = StudyObjects(kube, self._mirror, nodes, clock)
        self._waiting_pods = WaitingPods(kube, nodes, namespaces or EVERYWHERE, clock)
        self._config_maps = ConfigMaps(kube)
        self._examiner = Examiner(self._objects, self._config_maps, runtime, clock)
        self._namespaces = Namespaces(kube, clock)

    async def watch(self, changed: Callable[[StudyKey], None]) -> None:
        """Call `changed` whenever a study's Job or one of its pods changes, until cancelled."""
        await self._mirror.follow(changed)

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone, and of its namespace if no other one is there."""
        self._config_maps.forget(key)
        self._waiting_pods.forget(key)
        self._examiner.forget(key)
        if not self._examiner.has_studies_in(key.namespace):
            self._config_maps.forget_namespace(key.namespace)
            self._namespaces.forget(key.namespace)

    async def check(self, study: TuningStudy) -> tuple[Problem, ...]:
        """Return what is wrong with the templates: contradictions, invalid values, and unknown fields.

        What quotas and policies deny may change, so that is reported once a Job is refused.
        """
        refit, runtime = study.spec.refit, self._runtime(key_of(study))
        works: list[Work] = [Trial(0), *([Refit.of(refit, 0)] if refit and refit.template else [])]
        problems: list[Problem] = []
        for work in works:
            if found := trainer_problems(program(study, work), runtime):
                problems += found
                continue
            try:
                await self._kube.dry_run(job(study, work, runtime))
            except KubeError as error:
                if error.status in (400, 422):
                    field = fields_of(study, work).template
                    problems += template_problems(error.message, field, nearest_field)
                elif error.status != 409 and not error.is_refusal:
                    raise
        if not problems:
            # `kubectl tuning` finds the study server in the trainer's ConfigMap, and a study that continues a
            # record may have no trial to start.
            with starts_report_refusals():
                await self._config_maps.provide_trainer(study, runtime)
                await self._config_maps.provide_ca(study.metadata["namespace"], runtime)
        return tuple(problems)

    async def start(self, study: TuningStudy, work: Work) -> None:
        """Create the work's Job, and the ConfigMaps that its pods mount if they don't exist yet."""
        if failure := unreadable(program(study, work)):
            raise RunRefused(work, failure)
        namespace, runtime = study.metadata["namespace"], self._runtime(key_of(study))
        try:
            await self._config_maps.provide_ca(namespace, runtime)
            refusal = await self._config_maps.provide_or_assume_trainer(study, runtime)
            restarts = self._examiner.next_restarts(study, work)
            restricted = await self._namespaces.is_restricted(namespace)
            created = await self._kube.create(job(study, work, runtime, restarts, restricted=restricted))
            self._mirror.put("Job", created)
            if created is None:
                await self._check_owner(study, work)
                if refusal:  # the Job may be there because its pod waits for the trainer
                    raise refusal
        except KubeError as error:
            if not error.is_refusal:
                raise
            if JOB_QUOTA.search(error.message) and await self._namespaces.make_room(namespace):
                message = f"Finished Jobs were deleted to make room in a quota: {error}"
                raise RunsUnavailable(message) from error
            raise RunRefused(work, why_refused(error.message, study, work)) from error

    async def stop(self, key: StudyKey, work: Work) -> None:
        """Delete the work's Job, its pods before it."""
        name = work.job_name(key.name)
        if deleted := await self._kube.delete_job(key.namespace, name):
            self._mirror.put("Job", deleted)
        else:
            self._mirror.drop("Job", key.namespace, name)

    async def finish(self, key: StudyKey, work: Work, *, again: bool) -> None:
        """Have the kubelet end the work's pods by their deadline, which keeps the pods and the Job."""
        name = work.job_name(key.name)
        found = await self._kube.get("Job", key.namespace, name)
        if found is None:
            return
        if not again:  # otherwise the Job would replace the pod, since it did not succeed
            failed = found.get("status", {}).get("failed", 0)
            changed = await self._kube.patch("Job", key.namespace, name, "spec", backoffLimit=failed)
            self._mirror.put("Job", changed)
        for pod in (await self._objects.pods(key, {work: found})).get(work, ()):
            if exited_at(Evidence(found, [pod])):
                deadline = {"activeDeadlineSeconds": ENDING_DEADLINE}
                name = pod["metadata"]["name"]
                changed = await self._kube.patch("Pod", key.namespace, name, "spec", **deadline)
                self._mirror.put("Pod", changed)

    async def list_runs(self, study: TuningStudy, unfinished: Collection[Work]) -> Mapping[Work, Run]:
        """Return the runs of the unfinished work, and those of other work that have not succeeded."""
        return await self._examiner.list_runs(study, unfinished)

    async def others_waiting(self, study: TuningStudy, *, has_minimum: bool) -> str | None:
        """Return the pod of others that has waited longest for the study's kind of GPUs, if any waits."""
        key = key_of(study)
        runtime = self._runtime(key)
        gpus = gpu_resources(job(study, Trial(0), runtime), runtime.gpu_resource)
        found = await self._waiting_pods.first_of_others(key, gpus, has_minimum=has_minimum)
        return found.name if found else None

    async def _check_owner(self, study: TuningStudy, work: Work) -> None:
        """Refuse a run whose name belongs to something else."""
        key = key_of(study)
        name = work.job_name(key.name)
        there = await self._kube.get("Job", key.namespace, name)
        if there is None or belongs_to(there, study.metadata["uid"]) or is_of_a_study(there):
            return  # of a deleted study of this name: garbage collection takes it away
        message = f"Job {name} already exists and does not belong to this study."
        remedy = f"Delete it (`kubectl delete job {name}`), or give the study another name."
        raise RunRefused(work, Failure(category="NameTaken", message=message, remedy=remedy))
