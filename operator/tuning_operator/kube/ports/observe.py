"""What there is: a study's record and Jobs, read afresh in every pass. A read that fails ends the pass."""

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime
from itertools import chain
from typing import Any

from tuning_operator.kube.jobs.diagnose import (
    TRIAL,
    Evidence,
    Subject,
    job_state,
    refit_subject,
    why_ended,
    why_not_started,
)
from tuning_operator.kube.plan.observation import Observation, Run, Trouble
from tuning_operator.kube.ports.kubernetes import KubeApi
from tuning_operator.kube.ports.study_server import DefinitionRefused, StudyServer
from tuning_operator.kube.status.status import accepted
from tuning_operator.protocol import Failure, Problem, StudyDefinition, StudyKey, StudySummary
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy

Json = dict[str, Any]
Check = Callable[[TuningStudy], tuple[Problem, ...]]
Work = int | str
"""What a Job is for, as its name says it: a trial's number, or `refit`."""

AT_ONCE = 100
"""Trials named in one label selector; requests have a length."""


class Observer:
    """Reads a study's record and Jobs. Remembers only since when finished trials' Jobs go on."""

    def __init__(
        self, kube: KubeApi, server: StudyServer, check: Check, clock: Callable[[], datetime]
    ) -> None:
        self._kube, self._server, self._check, self._clock = kube, server, check, clock
        self._lingering: dict[StudyKey, dict[str, datetime]] = {}

    async def observe(self, key: StudyKey, study: TuningStudy) -> Observation:
        """Return the study as it stands.

        The Jobs are read before the record: a Job that had ended by then has had its say, so a trial that the
        record has as running has no result.
        """
        jobs = await self._unfinished_jobs(key)
        problems, summary = await self._record(key, study)
        unfinished = _unfinished(summary)
        missing = [names.job_name(key.name, work) for work in unfinished - jobs.keys()]
        for job in await asyncio.gather(*(self._kube.get("Job", key.namespace, name) for name in missing)):
            if job:
                jobs[_work(names.parse_job_name(job["metadata"]["name"])[1])] = job
        evidence = await self._evidence(key, study, {w: job for w, job in jobs.items() if w in unfinished})
        since = self._since(key, {w: job for w, job in jobs.items() if w not in unfinished})
        uid = study.metadata["uid"]
        runs = {w: _run(w, uid, evidence.get(w) or Evidence(job), since.get(w)) for w, job in jobs.items()}
        refit = runs.pop(names.REFIT, None)
        return Observation(summary, {run.trial: run for run in runs.values()}, refit, problems)

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._lingering.pop(key, None)

    async def _unfinished_jobs(self, key: StudyKey) -> dict[Work, Json]:
        """Jobs that succeeded are left out by the API server: a long study has thousands of them."""
        labels = (
            f"{names.LABEL_STUDY}={key.name},{names.LABEL_ROLE} in ({names.ROLE_TRIAL},{names.ROLE_FINAL})"
        )
        found = await self._kube.select("Job", key.namespace, labels=labels, fields="status.successful=0")
        return {_work_of(job): job for job in found}

    async def _record(
        self, key: StudyKey, study: TuningStudy
    ) -> tuple[tuple[Problem, ...], StudySummary | None]:
        """Read the record; declare the study if this generation of its spec is new to the server."""
        summary = await self._server.summary(key)
        if summary and accepted(study):
            return (), summary
        if problems := self._check(study):
            return problems, summary
        try:
            return (), await self._server.declare(key, definition(study))
        except DefinitionRefused as refused:
            return tuple(refused.problems), summary

    async def _evidence(
        self, key: StudyKey, study: TuningStudy, jobs: dict[Work, Json]
    ) -> dict[Work, Evidence]:
        """Read the pods of those Jobs that do not simply run, and Events where status may not tell all."""
        unclear = {w: job for w, job in jobs.items() if job_state(job) in ("starting", "ended")}
        if not unclear:
            return {}
        pods: dict[Work, list[Json]] = {}
        for pod in await self._pods(key, unclear):
            pods.setdefault(_work_of(pod), []).append(pod)
        largest = await self._kube.largest_nodes() if any(map(_unscheduled, chain(*pods.values()))) else None
        subjects: dict[Work, Subject] = {names.REFIT: refit_subject(study)}
        return {
            w: Evidence(
                job,
                pods.get(w, ()),
                await self._events(job, pods.get(w, [])),
                largest,
                subjects.get(w, TRIAL),
            )
            for w, job in unclear.items()
        }

    async def _pods(self, key: StudyKey, jobs: dict[Work, Json]) -> list[Json]:
        found: list[Json] = []
        of_study = f"{names.LABEL_STUDY}={key.name}"
        trials = sorted(work for work in jobs if isinstance(work, int))
        for first in range(0, len(trials), AT_ONCE):
            some = ",".join(map(str, trials[first : first + AT_ONCE]))
            labels = f"{of_study},{names.LABEL_ROLE}={names.ROLE_TRIAL},{names.LABEL_TRIAL} in ({some})"
            found += await self._kube.select("Pod", key.namespace, labels=labels)
        if names.REFIT in jobs:
            digest = jobs[names.REFIT]["metadata"]["labels"].get(names.LABEL_DIGEST, "")
            labels = f"{of_study},{names.LABEL_ROLE}={names.ROLE_FINAL},{names.LABEL_DIGEST}={digest}"
            found += await self._kube.select("Pod", key.namespace, labels=labels)
        return found

    async def _events(self, job: Json, pods: list[Json]) -> list[Json]:
        """Missing volumes, refused pods and failed pulls are told in Events only."""
        if job_state(job) == "ended" or any(map(_unscheduled, pods)):
            return []
        about = [job, *pods]
        found: list[Json] = []
        for item in about:
            fields = f"involvedObject.uid={item['metadata']['uid']},type=Warning"
            found += await self._kube.select("Event", item["metadata"]["namespace"], fields=fields)
        return found

    def _since(self, key: StudyKey, finished: dict[Work, Json]) -> dict[Work, datetime]:
        before, now = self._lingering.get(key, {}), self._clock()
        active = {n: job for n, job in finished.items() if job_state(job) in ("starting", "running")}
        seen = {job["metadata"]["uid"]: before.get(job["metadata"]["uid"], now) for job in active.values()}
        self._lingering[key] = seen
        return {n: seen[job["metadata"]["uid"]] for n, job in active.items()}


def definition(study: TuningStudy) -> StudyDefinition:
    """Return what the study server needs to know of a spec."""
    spec = study.spec
    return StudyDefinition(
        objectives=spec.objectives,
        search_space=spec.search_space,
        sampler=spec.sampler,
        pruner=spec.pruner,
        initial_trials=spec.initial_trials,
        warm_start=spec.warm_start.study if spec.warm_start else None,
        deletion_policy=spec.deletion_policy,
    )


def _unfinished(summary: StudySummary | None) -> set[Work]:
    """Return the work that has no result yet."""
    if summary is None:
        return set()
    refit = {names.REFIT} if summary.refit and summary.refit.state == "RUNNING" else set()
    return {trial.number for trial in summary.running} | refit


def _work(word: str) -> Work:
    return word if word == names.REFIT else int(word)


def _work_of(item: Json) -> Work:
    """Return what a Job or a pod is for."""
    labels = item["metadata"]["labels"]
    return names.REFIT if labels[names.LABEL_ROLE] == names.ROLE_FINAL else int(labels[names.LABEL_TRIAL])


def _unscheduled(pod: Json) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in conditions)


def _run(work: Work, study_uid: str, evidence: Evidence, lingering_since: datetime | None) -> Run:
    job = evidence.job
    labels = job["metadata"].get("labels", {})
    trial = work if isinstance(work, int) else int(labels.get(names.LABEL_TRIAL, -1))
    owners = job["metadata"].get("ownerReferences", [])
    if not any(owner["uid"] == study_uid for owner in owners):
        return _not_ours(trial, job, owners)
    state = job_state(job)
    trouble = {"ended": why_ended, "starting": why_not_started}.get(state, _nothing)(evidence)
    return Run(trial, state, trouble, lingering_since, labels.get(names.LABEL_DIGEST))  # type: ignore[arg-type]


def _nothing(_: Evidence) -> None:
    return None


def _not_ours(trial: int, job: Any, owners: Iterable[Any]) -> Run:
    if any(owner["kind"] == names.KIND for owner in owners):
        return Run(trial, "stopping")  # of a deleted study of this name: garbage collection takes it away
    name = job["metadata"]["name"]
    failure = Failure(
        category="NameTaken",
        message=f"a Job named {name} exists that is not of this study.",
        remedy=f"Delete it (kubectl delete job {name}), or give the study another name.",
    )
    return Run(trial, "foreign", Trouble(failure))
