"""Runs as Jobs of a cluster. The number of requests does not depend on the number of runs."""

import asyncio
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tuning_operator.kube.jobs.advice import REFUSALS, advise
from tuning_operator.kube.jobs.contention import gpu_resources
from tuning_operator.kube.jobs.ended import undelivered_result, why_ended
from tuning_operator.kube.jobs.evidence import (
    ENDING_DEADLINE,
    Evidence,
    diagnosis,
    exited_at,
    have_ended,
    is_ending,
    is_unscheduled,
    job_condition,
    job_state,
    last_progress,
    run_state,
)
from tuning_operator.kube.jobs.lost import (
    MOST_RESTARTS,
    Rejections,
    Restarts,
    is_pinned,
    must_move,
    never_starts,
    restarts_of,
    why_lost,
)
from tuning_operator.kube.jobs.manifests import job
from tuning_operator.kube.jobs.pod_template import is_restricted
from tuning_operator.kube.jobs.runtime import Runtime, trainer_name
from tuning_operator.kube.jobs.starting import (
    QUOTA_REMEDY,
    missing_config_map,
    why_incomplete,
    why_not_started,
)
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
    work_of_job,
)
from tuning_operator.kube.ports.jobs.capacity import Nodes, WaitingPods
from tuning_operator.kube.ports.jobs.config_maps import ConfigMaps
from tuning_operator.kube.ports.jobs.mirror import Mirror
from tuning_operator.kube.ports.jobs.study_objects import DIAGNOSIS_DELAY, StudyObjects
from tuning_operator.kube.ports.kube_api import KubeApi, KubeError
from tuning_operator.kube.ports.kubernetes import nearest_field
from tuning_operator.kube.ports.runs import RunRefused, RunsUnavailable, key_of
from tuning_operator.protocol import Failure, Problem, StudyKey
from tuning_operator.resource import names
from tuning_operator.resource.podshape import shape_problems
from tuning_operator.resource.study import TuningStudy
from tuning_operator.resource.times import parse_time

Json = dict[str, Any]

LONGEST_DELAY = timedelta(minutes=1)
"""How long a run that is starting is not diagnosed again: Events about it are not watched."""

NAMESPACE_TTL = timedelta(minutes=1)
"""How long it is remembered what a namespace enforces."""

GONE_DELAY = timedelta(seconds=1)
"""When to look whether a Job that succeeded, which is not watched, has been deleted."""

JOB_QUOTA = re.compile(r"exceeded quota.*\b(count/)?jobs\.batch=", re.DOTALL)
LOGS_KEPT = timedelta(minutes=10)
"""How long Jobs that failed are kept whatever a quota says: their end has to be recorded, and logs read."""
ROOM = 16
"""How many finished Jobs may be going away at a time when a quota on the number of Jobs is used up."""
GOING = timedelta(seconds=30)
"""How long a deleted Job is expected to go away: a finalizer, also of its pods, may keep it forever."""
ROOM_TTL = timedelta(seconds=2)
"""How long this is not repeated in a namespace: runs start side by side, and a quota takes a moment."""

EVERYWHERE = ("",)
"""The namespaces of an operator that is not limited to some."""


class Examined(NamedTuple):
    """A run, and what it was seen from."""

    run: Run
    evidence: Evidence

    def lasts(self, job: Json, pods: Sequence[Json], now: datetime) -> bool:
        """Return whether the run is not blocked, has not changed, and need not be checked again yet."""
        run, evidence = self
        settled = run.state == "running" or (run.check_at is not None and run.check_at > now)
        return run.diagnosis is None and settled and evidence.job == job and evidence.pods == pods


class Shown(NamedTuple):
    """The Jobs of a study, and the runs that they show."""

    shown_for: tuple[str, Mapping[type[Work], Program], str]
    """The study's uid, what runs that start now execute, and the study server's URL."""
    runs: Mapping[Work, tuple[Json, Run | None]]
    """Each Job with its run; None: it is someone else's, and a start will say so."""


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
        self._kube, self._runtime, self._clock = kube, runtime, clock
        nodes = Nodes(kube, clock)
        self._mirror = Mirror(kube, namespaces or EVERYWHERE)
        self._objects = StudyObjects(kube, self._mirror, nodes, clock)
        self._waiting_pods = WaitingPods(kube, nodes, namespaces or EVERYWHERE, clock)
        self._config_maps = ConfigMaps(kube)
        self._restricted: dict[str, tuple[datetime, bool]] = {}
        """When it was last seen whether a namespace enforces the Pod Security Standard `restricted`."""
        self._reading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """Runs start side by side, and one request for their namespace is enough."""
        self._making_room: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._made_room: dict[str, tuple[datetime, bool]] = {}
        """When finished Jobs of a namespace were last looked for, and whether any was going away."""
        self._rejections = Rejections()
        self._shown_before: dict[StudyKey, Shown] = {}
        self._examined_before: dict[StudyKey, dict[Work, Examined]] = {}
        self._restarts: dict[StudyKey, dict[Work, Restarts]] = {}
        """What is recorded on the next Jobs of work whose run was lost."""

    async def watch(self, changed: Callable[[StudyKey], None]) -> None:
        """Call `changed` whenever a study's Job or one of its pods changes, until cancelled."""
        await self._mirror.follow(changed)

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._config_maps.forget(key)
        self._waiting_pods.forget(key)
        self._restarts.pop(key, None)
        self._shown_before.pop(key, None)
        self._examined_before.pop(key, None)

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
                elif error.status != 409 and not error.is_refusal:
                    raise
        if not problems:
            # `kubectl tuning` finds the study server in the trainer's ConfigMap, and a study that continues a
            # record may have no trial to start.
            with _starts_report_refusals():
                await self._config_maps.provide_trainer(study, runtime)
                await self._config_maps.provide_ca(study.metadata["namespace"], runtime)
        return tuple(problems)

    async def start(self, study: TuningStudy, work: Work) -> None:
        """Create the work's Job, and the ConfigMaps that its pods mount if they don't exist yet."""
        _refuse_malformed(study, work)
        runtime = self._runtime(key_of(study))
        try:
            await self._config_maps.provide_ca(study.metadata["namespace"], runtime)
            refusal = await self._provide_trainer(study, runtime)
            restarts = self._next_restarts(study, work)
            restricted = await self._is_restricted(study.metadata["namespace"])
            created = await self._kube.create(job(study, work, runtime, restarts, restricted=restricted))
            self._mirror.put("Job", created)
            if created is None:
                await self._check_owner(study, work)
                if refusal:  # the Job may be there because its pod waits for the trainer
                    raise refusal
        except KubeError as error:
            if not error.is_refusal:
                raise
            if JOB_QUOTA.search(error.message) and await self._make_room(study.metadata["namespace"]):
                raise RunsUnavailable(
                    f"Finished Jobs were deleted to make room in a quota: {error}"
                ) from error
            raise RunRefused(work, _explained(error, study, work)) from error

    async def _provide_trainer(self, study: TuningStudy, runtime: Runtime) -> KubeError | None:
        """Create the trainer's ConfigMap; return the refusal if it most likely exists.

        A quota or a policy refuses to create one that exists, too, and the operator may not read ConfigMaps.
        """
        try:
            await self._config_maps.provide_trainer(study, runtime)
        except KubeError as error:
            if error.is_refusal and _has_run_trials(study):
                return error
            raise
        return None

    async def _is_restricted(self, namespace: str) -> bool:
        """Return whether the namespace enforces the Pod Security Standard `restricted`."""
        now = self._clock()
        async with self._reading[namespace]:
            when, restricted = self._restricted.get(namespace, (now - NAMESPACE_TTL, False))
            if now - when >= NAMESPACE_TTL:
                found = await self._kube.get("Namespace", "", namespace)
                restricted = found is not None and is_restricted(found)
                self._restricted[namespace] = now, restricted
        return restricted

    def _next_restarts(self, study: TuningStudy, work: Work) -> Restarts:
        pinned = is_pinned(program(study, work).template)
        rejecting = {} if pinned else self._rejections.nodes(self._clock())
        restarts = self._restarts.get(key_of(study), {}).get(work, Restarts())
        return replace(restarts, avoided=tuple(rejecting), reason=next(reversed(rejecting.values()), ""))

    async def _make_room(self, namespace: str) -> bool:
        """Delete finished Jobs that a quota counts; return whether any was going away a moment ago."""
        async with self._making_room[namespace]:
            when, deleted = self._made_room.get(namespace, (self._clock() - ROOM_TTL, False))
            if self._clock() - when >= ROOM_TTL:
                deleted = await self._delete_finished(namespace)
                self._made_room[namespace] = self._clock(), deleted
        return deleted

    async def _delete_finished(self, namespace: str) -> bool:
        """Delete finished Jobs of any study, whose record stays; return whether any is going away.

        Those that succeeded go first: their result is recorded. Those that failed are kept for a while.
        """
        found = await self._kube.select("Job", namespace, labels=names.LABEL_STUDY)
        over = [
            body
            for body in found
            if _of_a_study(body)
            and work_of_job(body["metadata"])
            and job_condition(body, "Complete", "Failed")
        ]
        over.sort(key=lambda body: str(body["metadata"].get("creationTimestamp")))
        going = [body for body in over if self._is_going(body)]
        there = [body for body in over if "deletionTimestamp" not in body["metadata"]]
        succeeded = [body for body in there if job_condition(body, "Complete")]
        finished = succeeded or [body for body in there if self._is_long_over(body)]
        for body in finished[: max(0, ROOM - len(going))]:
            await self._kube.delete_job(namespace, body["metadata"]["name"])
        return bool(finished or going)

    def _is_going(self, job: Json) -> bool:
        deleted = parse_time(job["metadata"].get("deletionTimestamp"))
        return deleted is not None and self._clock() - deleted < GOING

    def _is_long_over(self, job: Json) -> bool:
        failed = job_condition(job, "Failed")
        end = parse_time(failed.get("lastTransitionTime")) if failed else None
        return end is not None and self._clock() - end > LOGS_KEPT

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
        key, now = key_of(study), self._clock()
        jobs = await self._objects.jobs(key)
        missing = [work for work in unfinished if work not in jobs]
        not_watched = await self._objects.jobs_of(key, missing) if missing else {}
        jobs |= not_watched
        programs = _programs(study)
        runtime = self._runtime(key)
        runs = self._shown(key, study.metadata["uid"], jobs, programs, runtime.server_url)
        if unfinished or any(run.active for run in runs.values()):
            with _starts_report_refusals():
                await self._config_maps.provide_ca(key.namespace, runtime)
        unclear: dict[Work, Json] = {}
        over: dict[Work, Json] = {}
        for work, run in runs.items():
            matters = work in unfinished or isinstance(work, Worker)
            if matters and run.state == "running":
                continue
            body = jobs[work]
            if run.active and not matters:
                over[work] = body
            created = parse_time(body["metadata"].get("creationTimestamp"))
            if run.state == "starting" and matters and created and created + DIAGNOSIS_DELAY > now:
                runs[work] = replace(run, check_at=created + DIAGNOSIS_DELAY)
            elif run.state == "stopping" and work in not_watched:
                runs[work] = replace(run, check_at=now + GONE_DELAY)
            elif run.state == "starting" or (run.state == "ended" and matters):
                unclear[work] = body
        looked_at = unclear | over
        pods = await self._objects.pods(key, looked_at) if looked_at else {}
        for work, body in over.items():
            if have_ended(body, pods.get(work, ())):
                runs[work] = replace(runs[work], state="ended")
                unclear.pop(work, None)
        return runs | await self._examined(key, runs, unclear, pods, programs)

    def _shown(
        self,
        key: StudyKey,
        uid: str,
        jobs: Mapping[Work, Json],
        programs: dict[type[Work], Program],
        server_url: str,
    ) -> dict[Work, Run]:
        """Return the runs as these Jobs show them. A Job that has not changed shows what it did before."""
        before = self._shown_before.get(key)
        shown_for = uid, programs, server_url
        known = before.runs if before and before.shown_for == shown_for else {}
        runs: dict[Work, tuple[Json, Run | None]] = {}
        for work, body in jobs.items():
            found = known.get(work)
            if found is None or found[0] is not body:
                found = body, _run_of(body, uid, programs.get(type(work)), server_url)
            runs[work] = found
        self._shown_before[key] = Shown(shown_for, runs)
        return {work: run for work, (_, run) in runs.items() if run}

    async def _examined(
        self,
        key: StudyKey,
        runs: Mapping[Work, Run],
        jobs: Mapping[Work, Json],
        pods: Mapping[Work, Sequence[Json]],
        programs: Mapping[type[Work], Program],
    ) -> dict[Work, Run]:
        """Return the runs of these Jobs with what their pods and Events show.

        Most runs of a large study that starts have just not started yet: what has not changed since it was
        examined is not examined again before its time.
        """
        if not jobs:
            return {}
        now = self._clock()
        before = self._examined_before.get(key, {})
        same = {
            work: replace(before[work].run, outdated=True) if runs[work].outdated else before[work].run
            for work, body in jobs.items()
            if work in before and before[work].lasts(body, pods.get(work, ()), now)
        }
        changed = {work: body for work, body in jobs.items() if work not in same}
        found = await self._objects.evidence(key, changed, pods, programs)
        for evidence in found.values():
            if not is_pinned(evidence.template):
                for pod in evidence.pods:
                    self._rejections.see(pod)
        rejecting = self._rejections.nodes(now)
        examined = {
            work: self._judged(key, work, _with_evidence(runs[work], evidence, now), evidence, rejecting)
            for work, evidence in found.items()
        }
        diagnoses = (run.diagnosis for run in examined.values())
        if any(why and why.failure.category == "TrainerMissing" for why in diagnoses):
            self._config_maps.are_missing(key)
        new = {work: Examined(run, found[work]) for work, run in examined.items() if not run.outdated}
        self._examined_before[key] = {**{work: before[work] for work in same}, **new}
        return same | examined

    def _judged(
        self, key: StudyKey, work: Work, run: Run, evidence: Evidence, rejecting: Mapping[str, str]
    ) -> Run:
        """Return the run with what the next Job of its work might do better, such as use another node."""
        restarts = restarts_of(evidence.job)
        moves = must_move(evidence, rejecting) or never_starts(evidence)
        why = {"ended": why_lost(evidence), "starting": moves}.get(run.state)
        if why and restarts.count < MOST_RESTARTS:
            restarts = replace(restarts, count=restarts.count + 1)
            run = replace(run, lost=True, diagnosis=diagnosis("PodFailed", f"{why}. It is started again."))
        elif run.state == "starting" and evidence.pod and is_unscheduled(evidence.pod):
            run = replace(run, outdated=run.outdated or not set(restarts.avoided) <= rejecting.keys())
        elif run.state == "starting" and (missing := missing_config_map(evidence)):
            run = replace(run, outdated=run.outdated or missing not in self._provided(key))
        if run.lost or run.outdated:
            self._restarts.setdefault(key, {})[work] = restarts
        return run

    def _provided(self, key: StudyKey) -> tuple[str, ...]:
        """Return the ConfigMaps that this release brings to a study's pods; others are not created again."""
        runtime = self._runtime(key)
        return trainer_name(key.name, runtime), *([runtime.ca_config_map] if runtime.ca else [])

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
        if there is None or _belongs(there, study.metadata["uid"]) or _of_a_study(there):
            return  # of a deleted study of this name: garbage collection takes it away
        message = f"Job {name} exists already and does not belong to this study."
        remedy = f"Delete it (`kubectl delete job {name}`), or give the study another name."
        raise RunRefused(work, Failure(category="NameTaken", message=message, remedy=remedy))


@contextmanager
def _starts_report_refusals() -> Iterator[None]:
    """Pass over a refusal: it delays starts, and the next one reports it."""
    try:
        yield
    except KubeError as error:
        if not error.is_refusal:
            raise


def _has_run_trials(study: TuningStudy) -> bool:
    trials = study.status.trials
    return trials is not None and trials.total > trials.pending


def _run_of(body: Json, study_uid: str, current: Program | None, server_url: str) -> Run | None:
    """Return the run as its Job shows it; None if the Job is someone else's.

    Args:
        body: the Job.
        study_uid: the study's.
        current: what it would run if it were created now.
        server_url: the study server's.
    """
    ours = _belongs(body, study_uid)
    if not ours and not _of_a_study(body):
        return None
    annotations = body["metadata"].get("annotations", {})
    digest, server = annotations.get(names.ANNOTATION_PROGRAM), annotations.get(names.ANNOTATION_SERVER)
    other_program = digest is not None and current is not None and bool(digest != current.digest)
    return Run(
        job_state(body) if ours else "stopping",  # of a deleted study of this name
        outdated=other_program or server not in (None, server_url),
        stop_requested=names.ANNOTATION_STOP in annotations,
        trials_to_stop=_numbers(annotations.get(names.ANNOTATION_STOP, "")),
        trial_started=_trial_started(annotations),
    )


def _with_evidence(run: Run, evidence: Evidence, now: datetime) -> Run:
    """Return the run with what its pods and Events show."""
    state = run_state(evidence)
    why = {"starting": why_not_started, "running": why_incomplete, "ended": why_ended}[state]
    diagnosis, check_at = why(evidence), None
    since = last_progress(evidence.pod or evidence.job)
    if state == "starting" and diagnosis is None and since:
        check_at = now + min(max(now - since, DIAGNOSIS_DELAY), LONGEST_DELAY)
    return replace(
        run,
        state=state,
        diagnosis=diagnosis,
        exited=None if evidence.pod and is_ending(evidence.pod) else exited_at(evidence),
        has_node=evidence.pod is not None and "nodeName" in evidence.pod["spec"],
        result=undelivered_result(evidence),
        check_at=check_at,
    )


def _belongs(body: Json, study_uid: str) -> bool:
    return any(owner["uid"] == study_uid for owner in body["metadata"].get("ownerReferences", []))


def _of_a_study(body: Json) -> bool:
    return any(owner["kind"] == names.KIND for owner in body["metadata"].get("ownerReferences", []))


def _numbers(text: str) -> frozenset[int]:
    """Return the numbers in the annotation that asks for the end of a worker's trials."""
    return frozenset(int(number) for number in text.split(",") if number.isascii() and number.isdecimal())


def _trial_started(annotations: Mapping[str, str]) -> datetime | None:
    with suppress(ValueError):  # a user may have changed it
        return parse_time(annotations.get(names.ANNOTATION_STARTED))
    return None


def _programs(study: TuningStudy) -> dict[type[Work], Program]:
    """Return what runs that start now execute, by kind of work: it is the same for all trials."""
    works: list[Work] = [Trial(0), Worker(0), *([Refit.of(study.spec.refit, 0)] if study.spec.refit else [])]
    return {type(work): program(study, work) for work in works}


def _fields(study: TuningStudy, work: Work) -> Fields:
    """Return where the manifest says what the work runs; a refit that was removed from it ran the trial's."""
    return Fields() if isinstance(work, Refit) and study.spec.refit is None else program(study, work).fields


def _refuse_malformed(study: TuningStudy, work: Work) -> None:
    """Refuse a run whose template was changed, after the trial began, to one that can't be read."""
    runs = program(study, work)
    for path, message in shape_problems(runs.template):
        message = f"{runs.fields.template}.{path}: {message}"
        raise RunRefused(work, Failure(category="JobRefused", message=message))


def _explained(error: KubeError, study: TuningStudy, work: Work) -> Failure:
    if "exceeded quota" in error.message:
        return Failure(category="Quota", message=error.message, remedy=QUOTA_REMEDY)
    template = _fields(study, work).template
    if re.search(r"denied (?:the )?request", error.message):
        remedy = (
            f"Set what the policy asks for in {template}, or, for the Job's own labels and annotations, in "
            "spec.trial.job."
        )
    elif advice := advise(REFUSALS, error.message, template):
        remedy = advice.remedy
    else:
        remedy = f"Correct {template}; `kubectl explain job.spec.template.spec` describes its fields."
    message = f"The {work.noun}'s Job is refused: {error.message}"
    return Failure(category="JobRefused", message=message, remedy=remedy)
