"""What Jobs, pods and Events show of a study's runs. What has not changed is not examined again."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tuning_operator.kube.jobs.evidence import Evidence, diagnosis, have_ended, is_unscheduled
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
from tuning_operator.kube.jobs.run_state import DIAGNOSIS_DELAY, run_of, with_evidence
from tuning_operator.kube.jobs.runtime import Runtime, trainer_name
from tuning_operator.kube.jobs.starting import missing_config_map
from tuning_operator.kube.plan.observation import Run
from tuning_operator.kube.plan.work import Program, Refit, Trial, Work, Worker, program
from tuning_operator.kube.ports.jobs.config_maps import ConfigMaps, starts_report_refusals
from tuning_operator.kube.ports.jobs.study_objects import StudyObjects
from tuning_operator.kube.ports.kube_api import Json
from tuning_operator.kube.ports.runs import key_of
from tuning_operator.protocol import StudyKey
from tuning_operator.resource.study import TuningStudy
from tuning_operator.resource.times import parse_time

GONE_DELAY = timedelta(seconds=1)
"""When to look whether a Job that succeeded, which is not watched, has been deleted."""


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


class Examiner:
    """Lists runs. Remembers what they showed, which nodes reject pods, and what comes with the next Jobs."""

    def __init__(
        self,
        objects: StudyObjects,
        config_maps: ConfigMaps,
        runtime: Callable[[StudyKey], Runtime],
        clock: Callable[[], datetime],
    ) -> None:
        self._objects, self._config_maps = objects, config_maps
        self._runtime, self._clock = runtime, clock
        self._rejections = Rejections()
        self._shown_before: dict[StudyKey, Shown] = {}
        self._examined_before: dict[StudyKey, dict[Work, Examined]] = {}
        self._restarts: dict[StudyKey, dict[Work, Restarts]] = {}
        """What is recorded on the next Jobs of work whose run was lost."""

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._restarts.pop(key, None)
        self._shown_before.pop(key, None)
        self._examined_before.pop(key, None)

    def has_studies_in(self, namespace: str) -> bool:
        """Return whether any study of this namespace is remembered."""
        return any(key.namespace == namespace for key in self._shown_before)

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
            with starts_report_refusals():
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

    def next_restarts(self, study: TuningStudy, work: Work) -> Restarts:
        """Return what is recorded on the next Job of some work."""
        pinned = is_pinned(program(study, work).template)
        rejecting = {} if pinned else self._rejections.nodes(self._clock())
        restarts = self._restarts.get(key_of(study), {}).get(work, Restarts())
        return replace(restarts, avoided=tuple(rejecting), reason=next(reversed(rejecting.values()), ""))

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
                found = body, run_of(body, uid, programs.get(type(work)), server_url)
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
            work: self._judged(key, work, with_evidence(runs[work], evidence, now), evidence, rejecting)
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


def _programs(study: TuningStudy) -> dict[type[Work], Program]:
    """Return what runs that start now execute, by kind of work: it is the same for all trials."""
    works: list[Work] = [Trial(0), Worker(0), *([Refit.of(study.spec.refit, 0)] if study.spec.refit else [])]
    return {type(work): program(study, work) for work in works}
