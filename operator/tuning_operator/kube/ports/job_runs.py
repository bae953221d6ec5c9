"""Runs as Jobs of a cluster. The number of requests does not depend on the number of runs."""

import asyncio
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tuning_operator.kube.jobs.contention import WaitingPod, first_of_others, gpu_resources
from tuning_operator.kube.jobs.ended import undelivered_result, why_ended
from tuning_operator.kube.jobs.evidence import (
    ENDING_DEADLINE,
    Evidence,
    diagnosis,
    exited_at,
    is_ending,
    is_unscheduled,
    job_condition,
    job_state,
    run_state,
)
from tuning_operator.kube.jobs.lost import (
    MOST_RESTARTS,
    Rejections,
    Restarts,
    must_move,
    restarts_of,
    why_lost,
)
from tuning_operator.kube.jobs.manifests import Runtime, ca_config_map, job, trainer_config_map, trainer_name
from tuning_operator.kube.jobs.restricted import is_enforced
from tuning_operator.kube.jobs.starting import QUOTA_REMEDY, why_incomplete, why_not_started
from tuning_operator.kube.jobs.templates import template_problems, trainer_problems
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.work import (
    Fields,
    Program,
    Refit,
    Trial,
    Work,
    Worker,
    program,
    work_of,
)
from tuning_operator.kube.ports.kube_api import REFUSED, KubeApi, KubeError
from tuning_operator.kube.ports.kubernetes import nearest_field
from tuning_operator.kube.ports.mirror import NOT_SUCCEEDED, Mirror
from tuning_operator.kube.ports.runs import RunRefused, key_of
from tuning_operator.protocol import Failure, Problem, StudyKey
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy
from tuning_operator.resource.times import parse_time

Json = dict[str, Any]

DIAGNOSIS_DELAY = timedelta(seconds=3)
"""A younger Job is not diagnosed: its pod and Events are not read yet."""

LONGEST_DELAY = timedelta(minutes=1)
"""How long a run that is starting is not diagnosed again: Events about it are not watched."""

NODES_TTL = timedelta(minutes=1)
"""How long the nodes' sizes are remembered: a list of a thousand nodes is large."""

NAMESPACE_TTL = timedelta(minutes=1)

PENDING_TTL = timedelta(seconds=5)
"""How long it is remembered which pods wait: all elastic studies look at the same ones."""
PATIENCE = timedelta(seconds=10)
"""How long a pod of others waits before GPUs are given back for it: the scheduler may need a moment."""

GONE_DELAY = timedelta(seconds=1)
"""When to look whether a Job that succeeded, which is not watched, has been deleted."""

JOB_QUOTA = re.compile(r"exceeded quota.*\b(count/)?jobs\.batch=", re.DOTALL)
LOGS_KEPT = timedelta(minutes=10)
"""How long Jobs that failed are kept whatever a quota says: their end has to be recorded, and logs read."""
ROOM = 16
"""Finished Jobs that are deleted at a time when a quota on the number of Jobs is used up."""

MAX_SELECTED = 100
"""Trials named in one label selector: a URL has a limited length."""


class JobRuns:
    """Runs as Jobs.

    Remembers which studies have the trainer's ConfigMap, and for minutes which nodes reject pods and how big
    nodes are.
    """

    def __init__(
        self,
        kube: KubeApi,
        runtime: Callable[[StudyKey], Runtime],
        clock: Callable[[], datetime],
        namespaces: Collection[str] = (),
    ) -> None:
        self._kube, self._runtime, self._clock = kube, runtime, clock
        self._namespaces = namespaces or ("",)
        """Where studies are; "" is everywhere."""
        self._mirror = Mirror(kube, self._namespaces)
        self._provided: dict[StudyKey, set[tuple[str, str]]] = {}
        """The trainer's ConfigMaps that were created: the study's uid and the name."""
        self._ca: dict[str, str] = {}
        """The CA that each namespace has."""
        self._restricted: dict[str, tuple[datetime, bool]] = {}
        """When it was last seen whether a namespace enforces the Pod Security Standard `restricted`."""
        self._providing = asyncio.Lock()
        self._nodes: tuple[datetime, Mapping[str, str] | None] | None = None
        self._pending: tuple[datetime, list[WaitingPod]] | None = None
        self._with_minimum: set[StudyKey] = set()
        """Elastic studies whose waiting pods are beyond their minimum."""
        self._rejections = Rejections()
        self._restarts: dict[StudyKey, dict[Work, Restarts]] = {}
        """What is recorded on the next Jobs of work whose run was lost."""

    async def watch(self, changed: Callable[[StudyKey], None]) -> None:
        """Call `changed` whenever a study's Job or one of its pods changes, until cancelled."""
        await self._mirror.follow(changed)

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._provided.pop(key, None)
        self._restarts.pop(key, None)
        self._with_minimum.discard(key)

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
                    problems += template_problems(error.message, _fields(study, work).template, nearest_field)
                elif error.status not in (403, 409):
                    raise
        if not problems:
            await self._provide_address(study)
        return tuple(problems)

    async def _provide_address(self, study: TuningStudy) -> None:
        """Create the trainer's ConfigMap, in which `kubectl tuning` finds the study server.

        A study that continues a record may have no trial to start.
        """
        try:
            await self._provide_trainer(study, self._runtime(key_of(study)))
        except KubeError as error:
            if error.status not in REFUSED:  # otherwise the first start reports it
                raise

    async def start(self, study: TuningStudy, work: Work) -> None:
        """Create the work's Job, and the trainer's ConfigMap if the study does not have it yet."""
        runtime = self._runtime(key_of(study))
        try:
            await self._provide_trainer(study, runtime)
            restarts = self._next_restarts(study, work)
            restricted = await self._is_restricted(study.metadata["namespace"])
            created = await self._kube.create(job(study, work, runtime, restarts, restricted=restricted))
            self._mirror.put("Job", created)
            if created is None:
                await self._check_owner(study, work)
        except KubeError as error:
            if error.status not in REFUSED:
                raise
            if JOB_QUOTA.search(error.message):
                await self._delete_finished(study.metadata["namespace"])
            raise RunRefused(work, _explained(error, study, work)) from error

    async def _is_restricted(self, namespace: str) -> bool:
        """Return whether the namespace enforces the Pod Security Standard `restricted`."""
        now = self._clock()
        async with self._providing:
            when, restricted = self._restricted.get(namespace, (now - NAMESPACE_TTL, False))
            if now - when >= NAMESPACE_TTL:
                found = await self._kube.get("Namespace", "", namespace)
                restricted = found is not None and is_enforced(found)
                self._restricted[namespace] = now, restricted
        return restricted

    def _next_restarts(self, study: TuningStudy, work: Work) -> Restarts:
        rejecting = self._rejections.nodes(self._clock())
        restarts = self._restarts.get(key_of(study), {}).get(work, Restarts())
        return replace(restarts, avoided=tuple(rejecting), reason=next(reversed(rejecting.values()), ""))

    async def _delete_finished(self, namespace: str) -> None:
        """Make room in a quota on the number of Jobs: delete finished ones of any study, their record stays.

        Those that succeeded go first: their result is recorded. Those that failed are kept for a while.
        """
        jobs = await self._kube.select("Job", namespace, labels=names.LABEL_STUDY)
        jobs.sort(key=lambda body: str(body["metadata"].get("creationTimestamp")))
        succeeded = [body for body in jobs if job_condition(body, "Complete")]
        for body in (succeeded or [body for body in jobs if self._is_long_over(body)])[:ROOM]:
            await self._kube.delete_job(namespace, body["metadata"]["name"])

    def _is_long_over(self, job: Json) -> bool:
        failed = job_condition(job, "Failed")
        end = parse_time(failed.get("lastTransitionTime")) if failed else None
        return end is not None and self._clock() - end > LOGS_KEPT

    async def stop(self, key: StudyKey, work: Work) -> None:
        """Delete the work's Job, its pods before it."""
        self._mirror.put("Job", await self._kube.delete_job(key.namespace, work.job_name(key.name)))

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
        for pod in (await self._pods(key, {work: found})).get(work, ()):
            if exited_at(Evidence(found, [pod])):
                deadline = {"activeDeadlineSeconds": ENDING_DEADLINE}
                name = pod["metadata"]["name"]
                changed = await self._kube.patch("Pod", key.namespace, name, "spec", **deadline)
                self._mirror.put("Pod", changed)

    async def list_runs(self, study: TuningStudy, unfinished: Collection[Work]) -> Mapping[Work, Run]:
        """Return the runs of the unfinished work, and those of other work that have not succeeded."""
        key = key_of(study)
        if unfinished:
            await self._provide_ca(key.namespace, self._runtime(key))
        jobs = await self._jobs(key)
        missing = [work for work in unfinished if work not in jobs]
        not_watched = await self._jobs_of(key, missing) if missing else {}
        jobs |= not_watched
        uid, now = study.metadata["uid"], self._clock()
        runs: dict[Work, Run] = {}
        unclear: dict[Work, Json] = {}
        programs = _programs(study)
        for work, found in jobs.items():
            ours = _belongs(found, uid)
            if not ours and not _of_a_study(found):
                continue  # someone else's: a start will say so
            state = job_state(found) if ours else "stopping"  # of a deleted study
            created = parse_time(found["metadata"].get("creationTimestamp"))
            matters = work in unfinished or isinstance(work, Worker)
            is_new = created and state == "starting" and matters
            diagnose_at = created + DIAGNOSIS_DELAY if created and is_new else now
            check_at = diagnose_at if diagnose_at > now else None
            if state == "stopping" and work in not_watched:
                check_at = now + GONE_DELAY
            runs[work] = Run(
                state,
                outdated=_is_outdated(found, programs.get(type(work))),
                stop_requested=names.ANNOTATION_STOP in found["metadata"].get("annotations", {}),
                trials_to_stop=_trials_to_stop(found),
                trial_started=_trial_started(found),
                check_at=check_at,
            )
            if diagnose_at <= now and (state == "starting" or (state == "ended" and matters)):
                unclear[work] = found
        found_evidence = await self._evidence(key, unclear, programs)
        for evidence in found_evidence.values():
            for pod in evidence.pods:
                self._rejections.see(pod)
        for work, evidence in found_evidence.items():
            before = runs[work]
            run = replace(
                _run(evidence, now),
                outdated=before.outdated,
                stop_requested=before.stop_requested,
                trials_to_stop=before.trials_to_stop,
                trial_started=before.trial_started,
            )
            runs[work] = self._judged(key, work, run, evidence)
        if any(run.diagnosis and run.diagnosis.failure.category == "TrainerMissing" for run in runs.values()):
            self._provided.pop(key, None)  # the next start creates them again
            self._ca.pop(key.namespace, None)
        return runs

    def _judged(self, key: StudyKey, work: Work, run: Run, evidence: Evidence) -> Run:
        """Return the run with what the next Job of its work might do better."""
        restarts, rejecting = restarts_of(evidence.job), self._rejections.nodes(self._clock())
        why = {"ended": why_lost(evidence), "starting": must_move(evidence, rejecting)}.get(run.state)
        if why and restarts.count < MOST_RESTARTS:
            restarts = replace(restarts, count=restarts.count + 1)
            run = replace(run, lost=True, diagnosis=diagnosis("PodFailed", f"{why}. It is started again."))
        elif run.state == "starting" and evidence.pod and is_unscheduled(evidence.pod):
            run = replace(run, outdated=run.outdated or not set(restarts.avoided) <= rejecting.keys())
        if run.lost or run.outdated:
            self._restarts.setdefault(key, {})[work] = restarts
        return run

    async def _jobs(self, key: StudyKey) -> dict[Work, Json]:
        """Return the study's Jobs that have not succeeded, listed only if the watch has not begun."""
        found = self._mirror.select("Job", key)
        if found is None:
            found = await self._list_jobs(key, fields=NOT_SUCCEEDED["Job"])
        return _by_work(found, key.name)

    async def _jobs_of(self, key: StudyKey, works: Collection[Work]) -> dict[Work, Json]:
        """Return the Jobs of this work, also those that succeeded; of a refit also the one before it."""
        found = [body for labels in _selectors(works) for body in await self._list_jobs(key, labels)]
        jobs = _by_work(found, key.name)
        return {work: body for work, body in jobs.items() if work in works or isinstance(work, Refit)}

    async def _list_jobs(self, key: StudyKey, labels: str = "", fields: str = "") -> list[Json]:
        roles = f"{names.LABEL_ROLE} in ({','.join((names.ROLE_TRIAL, names.ROLE_FINAL, names.ROLE_WORKER))})"
        selector = ",".join(filter(None, (f"{names.LABEL_STUDY}={key.name}", roles, labels)))
        return await self._kube.select("Job", key.namespace, labels=selector, fields=fields)

    async def _evidence(
        self, key: StudyKey, jobs: Mapping[Work, Json], programs: Mapping[type[Work], Program]
    ) -> dict[Work, Evidence]:
        """Read the pods of these Jobs, and Events where the status may not say it all."""
        if not jobs:
            return {}
        pods = await self._pods(key, jobs)
        unscheduled = any(is_unscheduled(pod) for found in pods.values() for pod in found)
        silent = [
            item
            for work, body in jobs.items()
            if run_state(Evidence(body, pods.get(work, ()))) == "starting"
            and not any(map(is_unscheduled, pods.get(work, ())))
            for item in (body, *pods.get(work, ()))
        ]
        events = await self._events(key, silent)
        largest = await self._largest_nodes() if unscheduled else None
        return {
            work: Evidence(
                body,
                pods.get(work, ()),
                [e for item in (body, *pods.get(work, ())) for e in events.get(item["metadata"]["uid"], ())],
                largest,
                work.noun,
                current.fields if (current := programs.get(type(work))) else Fields(),
            )
            for work, body in jobs.items()
        }

    async def _pods(self, key: StudyKey, jobs: Mapping[Work, Json]) -> dict[Work, list[Json]]:
        """Return the pods of these Jobs.

        Those of Jobs that have ended are listed: the watch of pods may not have got as far as that of Jobs.
        """
        known = self._mirror.select("Pod", key)
        listed = {work for work, body in jobs.items() if known is None or job_state(body) == "ended"}
        # Those that succeeded matter if their result was not recorded.
        succeeded = any(job_condition(body, "Complete") for body in jobs.values())
        found = await self._list_pods(key, listed, "" if succeeded else NOT_SUCCEEDED["Pod"])
        pods: dict[Work, list[Json]] = {}
        for pod, is_listed in (*((pod, False) for pod in known or ()), *((pod, True) for pod in found)):
            work = work_of(pod["metadata"]["labels"])
            # Not by its labels alone: it may be the pod of a copied Job.
            ours = work in jobs and (work in listed) is is_listed
            if work and ours and _is_of_job(pod, work.job_name(key.name)):
                pods.setdefault(work, []).append(pod)
        return pods

    async def _list_pods(self, key: StudyKey, works: Collection[Work], fields: str) -> list[Json]:
        few = len(works) <= MAX_SELECTED
        pods: list[Json] = []
        for labels in _selectors(works) if few else ("",):
            selector = ",".join(filter(None, (f"{names.LABEL_STUDY}={key.name}", labels)))
            pods += await self._kube.select("Pod", key.namespace, labels=selector, fields=fields)
        return pods

    async def _events(self, key: StudyKey, items: Iterable[Json]) -> dict[str, list[Json]]:
        """Return the Warnings about these Jobs and pods, by uid: only they show missing volumes."""
        uids = {item["metadata"]["uid"] for item in items}
        found: dict[str, list[Json]] = {}
        for kind in ("Job", "Pod") if uids else ():
            # The scheduler reports in the pod's status too, and its Events are as many as the pods that wait.
            fields = f"involvedObject.kind={kind},type=Warning,reason!=FailedScheduling"
            for event in await self._kube.select("Event", key.namespace, fields=fields):
                if (uid := event["involvedObject"].get("uid")) in uids:
                    found.setdefault(uid, []).append(event)
        return found

    async def others_waiting(self, study: TuningStudy, *, has_minimum: bool) -> str | None:
        """Return the pod of others that has waited longest for the study's kind of GPUs, if any waits."""
        key, now = key_of(study), self._clock()
        (self._with_minimum.add if has_minimum else self._with_minimum.discard)(key)
        if self._pending is None or now - self._pending[0] > PENDING_TTL:
            largest = await self._largest_nodes()
            lists = [
                await self._kube.select("Pod", namespace, fields="status.phase=Pending")
                for namespace in self._namespaces
            ]
            pods = (WaitingPod.of(pod, largest) for found in lists for pod in found)
            self._pending = now, [pod for pod in pods if pod]
        runtime = self._runtime(key)
        gpus = gpu_resources(job(study, Trial(0), runtime), runtime.gpu_resource)
        found = first_of_others(self._pending[1], {key, *self._with_minimum}, gpus, now - PATIENCE)
        return found.name if found else None

    async def _largest_nodes(self) -> Mapping[str, str] | None:
        now = self._clock()
        if self._nodes is None or now - self._nodes[0] > NODES_TTL:
            self._nodes = now, await self._kube.largest_nodes()
        return self._nodes[1]

    async def _provide_trainer(self, study: TuningStudy, runtime: Runtime) -> None:
        mark = study.metadata["uid"], trainer_name(study, runtime)
        async with self._providing:  # runs start side by side, and one request is enough
            provided = self._provided.setdefault(key_of(study), set())
            if mark not in provided:
                await self._kube.create(trainer_config_map(study, runtime))
                provided.add(mark)
        await self._provide_ca(study.metadata["namespace"], runtime)

    async def _provide_ca(self, namespace: str, runtime: Runtime) -> None:
        """Bring the current CA to a namespace's pods, those that run included."""
        async with self._providing:
            if runtime.ca and self._ca.get(namespace) != runtime.ca:
                config = ca_config_map(namespace, runtime)
                if not await self._kube.create(config):
                    await self._kube.patch(
                        "ConfigMap", namespace, runtime.ca_config_map, "data", **config["data"]
                    )
                self._ca[namespace] = runtime.ca

    async def _check_owner(self, study: TuningStudy, work: Work) -> None:
        """Refuse a run whose name belongs to something else."""
        key = key_of(study)
        name = work.job_name(key.name)
        there = await self._kube.get("Job", key.namespace, name)
        if there is None or _belongs(there, study.metadata["uid"]) or _of_a_study(there):
            return  # of a deleted study of this name: garbage collection takes it away
        message = f"Job {name} exists already and does not belong to this study."
        remedy = f"Delete it (`kubectl delete job {name}`), or give the study another name."
        raise RunRefused(work, Failure(category="NameTaken", message=message, remedy=remedy))


def _run(evidence: Evidence, now: datetime) -> Run:
    """Return the run as its Job and pods show it."""
    state = run_state(evidence)
    why = {"starting": why_not_started, "running": why_incomplete, "ended": why_ended}[state]
    diagnosis, check_at = why(evidence), None
    if state == "starting" and diagnosis is None and evidence.pod is not None:
        created = parse_time(evidence.job["metadata"].get("creationTimestamp")) or now
        check_at = now + min(max(now - created, DIAGNOSIS_DELAY), LONGEST_DELAY)
    exited = None if evidence.pod and is_ending(evidence.pod) else exited_at(evidence)
    has_node = evidence.pod is not None and "nodeName" in evidence.pod["spec"]
    result = undelivered_result(evidence)
    return Run(state, diagnosis, exited, has_node=has_node, result=result, check_at=check_at)


def _by_work(jobs: Iterable[Json], study: str) -> dict[Work, Json]:
    works = ((work_of(body["metadata"]["labels"]), body) for body in jobs)
    # Not by its labels alone: someone may have copied a Job to debug it.
    return {work: body for work, body in works if work and body["metadata"]["name"] == work.job_name(study)}


def _belongs(body: Json, study_uid: str) -> bool:
    return any(owner["uid"] == study_uid for owner in body["metadata"].get("ownerReferences", []))


def _is_of_job(pod: Json, name: str) -> bool:
    owners = pod["metadata"].get("ownerReferences", [])
    return any(owner["kind"] == "Job" and owner["name"] == name for owner in owners)


def _of_a_study(body: Json) -> bool:
    return any(owner["kind"] == names.KIND for owner in body["metadata"].get("ownerReferences", []))


def _trials_to_stop(body: Json) -> frozenset[int]:
    """Return the numbers in the annotation that asks for the end of a worker's trials."""
    text = body["metadata"].get("annotations", {}).get(names.ANNOTATION_STOP, "")
    return frozenset(int(number) for number in text.split(",") if number.isascii() and number.isdecimal())


def _trial_started(body: Json) -> datetime | None:
    with suppress(ValueError):  # a user may have changed it
        return parse_time(body["metadata"].get("annotations", {}).get(names.ANNOTATION_STARTED))
    return None


def _programs(study: TuningStudy) -> dict[type[Work], Program]:
    """Return what runs that start now execute, by kind of work: it is the same for all trials."""
    works: list[Work] = [Trial(0), Worker(0), *([Refit.of(study.spec.refit, 0)] if study.spec.refit else [])]
    return {type(work): program(study, work) for work in works}


def _is_outdated(body: Json, current: Program | None) -> bool:
    digest = body["metadata"].get("annotations", {}).get(names.ANNOTATION_PROGRAM)
    return digest is not None and current is not None and bool(digest != current.digest)


def _selectors(works: Collection[Work]) -> list[str]:
    numbers = sorted(work.number for work in works if isinstance(work, Trial))
    chunks = (numbers[first : first + MAX_SELECTED] for first in range(0, len(numbers), MAX_SELECTED))
    trials = [f"{names.LABEL_TRIAL} in ({','.join(map(str, chunk))})" for chunk in chunks]
    roles = sorted({work.role for work in works if not isinstance(work, Trial)})
    return [*trials, *(f"{names.LABEL_ROLE}={role}" for role in roles)]


def _fields(study: TuningStudy, work: Work) -> Fields:
    """Return where the manifest says what the work runs; a refit that was removed from it ran the trial's."""
    return Fields() if isinstance(work, Refit) and study.spec.refit is None else program(study, work).fields


def _explained(error: KubeError, study: TuningStudy, work: Work) -> Failure:
    if "exceeded quota" in error.message:
        return Failure(category="Quota", message=error.message, remedy=QUOTA_REMEDY)
    template = _fields(study, work).template
    remedy = (
        f"Set what the policy asks for in {template}, or, for the Job's own labels and annotations, in "
        "spec.trial.job."
        if re.search(r"denied (?:the )?request", error.message)
        else f"Correct {template}; `kubectl explain job.spec.template.spec` describes its fields."
    )
    message = f"The {work.noun}'s Job is refused: {error.message}"
    return Failure(category="JobRefused", message=message, remedy=remedy)
