"""Reads a study's record and runs, in every pass again. A read that fails ends the pass."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

from tuning_operator.kube.plan.observation import Observation, Run, unfinished, with_trials
from tuning_operator.kube.plan.parallelism import has_minimum
from tuning_operator.kube.plan.validation import definition
from tuning_operator.kube.plan.work import Trial, Work, Worker
from tuning_operator.kube.ports.kube_api import Resources
from tuning_operator.kube.ports.namespace_limit import NamespaceLimit
from tuning_operator.kube.ports.runs import Runs
from tuning_operator.kube.ports.study_server import DefinitionRefused, StudyServer
from tuning_operator.kube.status.status import accepted
from tuning_operator.protocol import Problem, StudyKey, StudySummary
from tuning_operator.resource.study import TuningStudy

Check = Callable[[TuningStudy], tuple[Problem, ...]]


class Observer:
    """Reads studies. Remembers only since when runs go on whose work has a result."""

    def __init__(
        self,
        resources: Resources,
        runs: Runs,
        server: StudyServer,
        check: Check,
        limit: NamespaceLimit | None = None,
    ) -> None:
        """Start with nothing; `limit` is None if namespaces have no limit on their trials."""
        self._limit = limit
        self._resources = resources
        self._runs, self._server, self._check = runs, server, check
        self._lingering: dict[StudyKey, dict[Work, datetime]] = {}

    async def observe(self, key: StudyKey, study: TuningStudy, now: datetime) -> Observation:
        """Return the study as it is now.

        The record is read before the runs: a run that is missing belongs to a trial without a result, or to
        one whose result has just arrived; the record takes no second result, so both are safe.
        """
        problems, summary = await self._record(key, study)
        wanted = unfinished(summary)
        per_worker = study.spec.trial.trials_per_pod if study.spec.trial.reuse_pods else 0
        if per_worker:  # trials have no runs of their own
            wanted = frozenset(work for work in wanted if not isinstance(work, Trial))
        runs = await self._runs.list_runs(study, wanted)
        over = {work: run for work, run in runs.items() if work not in wanted}
        if per_worker:  # workers outlive their trials
            over = {work: run for work, run in over.items() if not isinstance(work, Worker)}
        since = self._since(key, over, now)
        runs = {**runs, **{work: replace(runs[work], lingering_since=when) for work, when in since.items()}}
        if problems:  # a rejected edit replaces no run of the spec before it
            runs = {work: replace(run, outdated=False) for work, run in runs.items()}
        seen = with_trials(Observation(summary, runs, problems, per_worker))
        if study.spec.min_parallelism is not None and not problems:
            others = await self._runs.others_waiting(study, has_minimum=has_minimum(study, seen))
            seen = replace(seen, others_wait=others)
        return replace(seen, limit=await self._limit.allowed(study, seen, now)) if self._limit else seen

    def forget(self, key: StudyKey) -> None:
        """Drop what is remembered of a study that is gone."""
        self._lingering.pop(key, None)
        self._runs.forget(key)
        if self._limit:
            self._limit.forget(key)

    async def _record(
        self, key: StudyKey, study: TuningStudy
    ) -> tuple[tuple[Problem, ...], StudySummary | None]:
        """Read the record; declare the study if this generation of its spec is new to the server."""
        summary = await self._server.summary(key)
        if summary and summary.uid not in (None, study.metadata["uid"]):
            summary = None  # of an earlier TuningStudy of this name
        if summary and accepted(study):
            return (), summary
        if problems := self._check(study) or await self._runs.check(study):
            return problems, summary
        try:
            namespace = await self._resources.get("Namespace", "", key.namespace)
            uid = namespace["metadata"]["uid"] if namespace else None
            return (), await self._server.declare(key, definition(study, uid))
        except DefinitionRefused as refused:
            return tuple(refused.problems), summary

    def _since(self, key: StudyKey, finished: Mapping[Work, Run], now: datetime) -> dict[Work, datetime]:
        before = self._lingering.get(key, {})
        since = {work: before.get(work, now) for work, run in finished.items() if run.active}
        self._lingering[key] = since
        return since
