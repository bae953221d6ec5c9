"""One pass over one study: observe, decide, act, publish. The only place where they meet."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from tuning_operator.kube.loop.result import ActionsFailed, Result, failure_of, most_urgent
from tuning_operator.kube.plan.actions import Action, Plan
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.plan.verdict import is_over
from tuning_operator.kube.ports.act import Actor, Expected
from tuning_operator.kube.ports.kube_api import Resources
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.ports.publish import publish
from tuning_operator.kube.ports.runs import RunsUnavailable
from tuning_operator.kube.ports.study_server import StudyServer, StudyServerUnavailable
from tuning_operator.kube.status.events import new_events
from tuning_operator.kube.status.reading import SpecUnreadable, read_spec, read_status
from tuning_operator.kube.status.status import contested, new_status, refused, with_failure, with_ignored
from tuning_operator.protocol import Problem, StudyKey, StudySummary
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy, TuningStudyStatus

log = logging.getLogger(__name__)

ROUNDS = 32
"""How often a pass may act on what its own requests to the study server brought, before it looks again.

Looking takes as long as several rounds once a study has hundreds of Jobs; this is a few seconds of starts.
"""
SHORTEST_WAIT = 0.1
"""Seconds until the next pass if nothing happens: a rule that waits for this very moment must not spin."""


class Reconciler:
    """Brings one study after another to what its spec says."""

    def __init__(
        self,
        resources: Resources,
        server: StudyServer,
        observer: Observer,
        actor: Actor,
        clock: Callable[[], datetime],
        installation: str | None = None,
    ) -> None:
        """Start with nothing.

        Args:
            resources: where studies are kept.
            server: the study server.
            observer: reads studies.
            actor: carries out actions.
            clock: returns the time.
            installation: the name under which this operator serves studies; None: there is no other.
        """
        self._installation = installation
        self._resources, self._server = resources, server
        self._observer, self._actor = observer, actor
        self._clock = clock
        self._last: dict[StudyKey, tuple[Action, ...]] = {}

    async def reconcile(self, key: StudyKey) -> Result:
        """Do a pass.

        Raises:
            RunsUnavailable, StudyServerUnavailable, ActionsFailed: try again after a back-off.
        """
        body = await self._resources.get(names.KIND, key.namespace, key.name)
        if body is None or body["metadata"].get("deletionTimestamp"):
            await self._forget(key)
            return Result("gone")
        status = read_status(body)
        if self._installation and (result := await self._claim(body, status, self._installation)):
            return result
        try:
            spec, unknown = read_spec(body["spec"], started=status.start_time is not None)
        except SpecUnreadable as error:
            await self._refuse(body, status, error.problems)
            return Result("waiting")
        study = TuningStudy(metadata=body["metadata"], spec=spec, status=status)
        return await self._pass(key, body, study, unknown)

    async def _claim(self, body: dict[str, Any], old: TuningStudyStatus, me: str) -> Result | None:
        """Claim a study for this installation; return None once this is the one that serves it.

        The API server accepts only one of several simultaneous claims: each is a change of the same version.
        """
        now = self._clock()
        owner = body["spec"].get("installation") or old.installation or me
        if owner == old.installation == me:
            return None
        if owner == me:
            await publish(self._resources, body, old.model_copy(update={"installation": me}), (), now)
            return Result("acted", 0)
        self._observer.forget(StudyKey(body["metadata"]["namespace"], body["metadata"]["name"]))
        status = contested(old, body["metadata"], owner, me, now)
        await publish(self._resources, body, status, new_events(old, status, StudySummary()), now)
        return Result("waiting")

    async def _pass(
        self, key: StudyKey, body: dict[str, Any], study: TuningStudy, unknown: tuple[str, ...]
    ) -> Result:
        now = self._clock()
        try:
            seen = await self._observer.observe(key, study, now)
        except (RunsUnavailable, StudyServerUnavailable) as error:
            if failure_of(error) and not is_over(study.status):
                await self._publish(body, study, study.status, [error], StudySummary(), now)
            raise
        seen, plan, done, errors = await self._act(key, study, seen, now)
        summary = seen.summary or StudySummary()
        status = with_ignored(new_status(study, seen, plan, now), unknown, now)
        await self._publish(body, study, status, errors, summary, now)
        if errors:
            raise ActionsFailed(errors)
        repeated, self._last[key] = done == self._last.get(key), done
        if done:
            return Result("no_progress" if repeated else "acted", 0)
        wait = max((plan.wake - now).total_seconds(), SHORTEST_WAIT) if plan.wake else None
        over = is_over(status) and all(run.state == "ended" for run in seen.runs.values())
        return Result("waiting", wait, over)

    async def _act(
        self, key: StudyKey, study: TuningStudy, seen: Observation, now: datetime
    ) -> tuple[Observation, Plan, tuple[Action, ...], list[Expected]]:
        """Act until there is nothing to do but to look again.

        Trials that an Ask brings are started at once, while the next ones are asked for.

        Returns:
            What was last seen and decided, the actions that were carried out, and their errors.
        """
        done: tuple[Action, ...] = ()
        plan = decide(study, seen, now)
        for _ in range(ROUNDS):
            if not plan.actions:
                break
            log.info("%s: %s", key, ", ".join(map(str, plan.actions)))
            outcome = await self._actor.act(key, study, plan.actions)
            done += plan.actions
            if outcome.summary is None or outcome.errors:
                return seen, plan, done, outcome.errors
            seen = seen.after(outcome.summary, plan.actions)
            before, plan = plan, decide(study, seen, now)
            if plan.actions == before.actions:
                break
        return seen, plan, done, []

    async def _publish(
        self,
        body: dict[str, Any],
        study: TuningStudy,
        status: TuningStudyStatus,
        errors: Sequence[Expected],
        summary: StudySummary,
        now: datetime,
    ) -> None:
        if found := most_urgent(errors):
            failure, work = found
            status = with_failure(status, study.metadata["generation"], failure, now, work)
        await publish(self._resources, body, status, new_events(study.status, status, summary), now)

    async def _refuse(
        self, body: dict[str, Any], old: TuningStudyStatus, problems: tuple[Problem, ...]
    ) -> None:
        """A spec that the CRD lets pass and the operator cannot read, for example from another version."""
        now = self._clock()
        status = refused(old, body["metadata"]["generation"], problems, now)
        await publish(self._resources, body, status, new_events(old, status, StudySummary()), now)

    async def _forget(self, key: StudyKey) -> None:
        """End the study in the record; its runs go by their owner reference."""
        namespace = await self._resources.get("Namespace", "", key.namespace)
        gone = namespace is None or "deletionTimestamp" in namespace["metadata"]
        await self._server.forget(key, namespace_deleted=gone)
        self._observer.forget(key)
        self._last.pop(key, None)
