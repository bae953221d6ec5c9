"""The Jobs, pods and Events of a study, read for as many runs at once as possible."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from tuning_operator.kube.jobs.evidence import (
    Evidence,
    is_unscheduled,
    job_condition,
    job_state,
    last_progress,
    run_state,
)
from tuning_operator.kube.jobs.run_state import DIAGNOSIS_DELAY
from tuning_operator.kube.jobs.starting import in_need_of_events
from tuning_operator.kube.plan.work import Fields, Program, Refit, Trial, Work, work_of, work_of_job
from tuning_operator.kube.ports.jobs.capacity import Nodes
from tuning_operator.kube.ports.jobs.mirror import NOT_SUCCEEDED, Mirror
from tuning_operator.kube.ports.kube_api import Json, KubeApi
from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names

EVENTS_TTL = timedelta(seconds=5)
"""How long a list of Events is used, at least."""
EVENTS_PAUSE = 20
"""How many times as long as a list of Events took it is used, at least."""

MAX_SELECTED = 100
"""Trials named in one label selector: a URL has a limited length."""


class StudyObjects:
    """Reads them from the mirror where it has them."""

    def __init__(self, kube: KubeApi, mirror: Mirror, nodes: Nodes, clock: Callable[[], datetime]) -> None:
        self._kube, self._mirror, self._nodes, self._clock = kube, mirror, nodes, clock
        self._listed: dict[str, tuple[datetime, Mapping[str, Sequence[Json]]]] = {}
        """Until when the last list of each namespace's Warnings is used, and the Warnings by uid."""

    async def jobs(self, key: StudyKey) -> dict[Work, Json]:
        """Return the study's Jobs that have not succeeded, listed only if the watch has not begun."""
        found = self._mirror.select("Job", key)
        if found is None:
            found = await self._list_jobs(key, fields=NOT_SUCCEEDED["Job"])
        return _by_work(found)

    async def jobs_of(self, key: StudyKey, works: Collection[Work]) -> dict[Work, Json]:
        """Return the Jobs of this work, also those that succeeded; of a refit also the one before it."""
        found = [body for labels in _selectors(works) for body in await self._list_jobs(key, labels)]
        jobs = _by_work(found)
        return {work: body for work, body in jobs.items() if work in works or isinstance(work, Refit)}

    async def _list_jobs(self, key: StudyKey, labels: str = "", fields: str = "") -> list[Json]:
        roles = f"{names.LABEL_ROLE} in ({','.join((names.ROLE_TRIAL, names.ROLE_FINAL, names.ROLE_WORKER))})"
        selector = ",".join(filter(None, (f"{names.LABEL_STUDY}={key.name}", roles, labels)))
        return await self._kube.select("Job", key.namespace, labels=selector, fields=fields)

    async def evidence(
        self,
        key: StudyKey,
        jobs: Mapping[Work, Json],
        pods: Mapping[Work, Sequence[Json]],
        programs: Mapping[type[Work], Program],
    ) -> dict[Work, Evidence]:
        """Return what is known of these Jobs; read Events where the status of a pod may not say it all."""
        unscheduled = any(is_unscheduled(pod) for work in jobs for pod in pods.get(work, ()))
        largest = await self._nodes.largest() if unscheduled else None
        found = {
            work: Evidence(
                body,
                pods.get(work, ()),
                largest=largest,
                noun=work.noun,
                fields=current.fields if (current := programs.get(type(work))) else Fields(),
            )
            for work, body in jobs.items()
        }
        silent = {work: item for work, evidence in found.items() if (item := self._silent(evidence))}
        warnings = await self._warnings(key.namespace) if silent else {}
        for work, item in silent.items():
            found[work] = replace(found[work], events=warnings.get(item["metadata"]["uid"], ()))
        return found

    def _silent(self, evidence: Evidence) -> Mapping[str, Any] | None:
        """Return the object whose Events are needed: it has been in the same state for a while."""
        item = in_need_of_events(evidence)
        since = last_progress(item) if item and run_state(evidence) == "starting" else None
        return item if since and self._clock() - since >= DIAGNOSIS_DELAY else None

    async def _warnings(self, namespace: str) -> Mapping[str, Sequence[Json]]:
        """Return the Warnings about objects of a namespace by uid, as of the last few seconds.

        For each list, the API server reads all Events of the namespace, and there may be tens of thousands.
        """
        began = self._clock()
        self._listed = {place: listed for place, listed in self._listed.items() if listed[0] > began}
        if namespace not in self._listed:
            # The scheduler reports in the pod's status too, and its Events are as many as the pods that wait.
            fields = "type=Warning,reason!=FailedScheduling"
            found: dict[str, list[Json]] = {}
            for event in await self._kube.select("Event", namespace, fields=fields):
                if uid := event["involvedObject"].get("uid"):
                    found.setdefault(uid, []).append(event)
            ended = self._clock()
            self._listed[namespace] = ended + max(EVENTS_TTL, EVENTS_PAUSE * (ended - began)), found
        return self._listed[namespace][1]

    async def pods(self, key: StudyKey, jobs: Mapping[Work, Json]) -> dict[Work, list[Json]]:
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


def _by_work(jobs: Iterable[Json]) -> dict[Work, Json]:
    works = ((work_of_job(body["metadata"]), body) for body in jobs)
    return {work: body for work, body in works if work}


def _is_of_job(pod: Json, name: str) -> bool:
    owners = pod["metadata"].get("ownerReferences", [])
    return any(owner["kind"] == "Job" and owner["name"] == name for owner in owners)


def _selectors(works: Collection[Work]) -> list[str]:
    numbers = sorted(work.number for work in works if isinstance(work, Trial))
    chunks = (numbers[first : first + MAX_SELECTED] for first in range(0, len(numbers), MAX_SELECTED))
    trials = [f"{names.LABEL_TRIAL} in ({','.join(map(str, chunk))})" for chunk in chunks]
    roles = sorted({work.role for work in works if not isinstance(work, Trial)})
    return [*trials, *(f"{names.LABEL_ROLE}={role}" for role in roles)]
