"""One pass over one study: observe, decide, act, publish. The only place where they meet."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from tuning_operator.kube.plan.actions import Action, Plan
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.plan.verdict import ENDED
from tuning_operator.kube.plan.work import Worker
from tuning_operator.kube.ports.act import Actor, Expected
from tuning_operator.kube.ports.kube_api import KubeError, Resources
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.ports.publish import publish
from tuning_operator.kube.ports.runs import RunRefused, RunsUnavailable
from tuning_operator.kube.ports.study_server import StudyServer, StudyServerUnavailable
from tuning_operator.kube.status.events import new_events
from tuning_operator.kube.status.status import contested, new_status, refused, with_failure, with_ignored
from tuning_operator.protocol import Failure, Problem, StudyKey, StudySummary
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy, TuningStudySpec, TuningStudyStatus
from tuning_operator.resource.text import count, field_path

log = logging.getLogger(__name__)

ROUNDS = 32
"""How often a pass may act on what its own requests to the study server brought, before it looks again.

Looking takes as long as several rounds once a study has hundreds of Jobs; this is a few seconds of starts.
"""


SHORTEST_WAIT = 0.1
"""Seconds until the next pass if nothing happens: a rule that waits for this very moment must not spin."""


UNKNOWN = "extra_forbidden"
"""Pydantic's type of the error for a field that a model doesn't have."""
UNKNOWN_FIELD = (
    "this operator does not know the field, since it is older than the CRD: upgrade the operator, or remove "
    "the field"
)


class ActionsFailed(Exception):  # noqa: N818
    """Some actions of a pass failed; all were tried."""

    def __init__(self, errors: Sequence[Expected]) -> None:
        texts = list(dict.fromkeys(map(str, errors)))
        more = f" (and {count(len(texts) - 1, 'other error')})" if len(texts) > 1 else ""
        super().__init__(f"{texts[0]}{more}")


@dataclass(frozen=True)
class Result:
    """How a pass ended.

    Attributes:
        outcome: `gone` if the study no longer exists, `acted` if the pass carried out actions, `waiting` if
            there was nothing to do, `no_progress` if it carried out the same actions as the pass before.
        after: seconds until the study needs another pass; None if it needs one only when something happens.
        over: whether the study is over and nothing of it is running any more.
    """

    outcome: Literal["gone", "waiting", "acted", "no_progress"]
    after: float | None = None
    over: bool = False


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
        status = _status(body)
        if self._installation and (result := await self._claim(body, status, self._installation)):
            return result
        unknown: tuple[str, ...] = ()
        try:
            spec = TuningStudySpec.model_validate(body["spec"])
        except ValidationError as error:
            unknown = _unknown_fields(error)
            if not unknown or status.start_time is None:
                await self._refuse(body, status, error)
                return Result("waiting")
            spec = TuningStudySpec.model_validate(body["spec"], extra="ignore")
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
            if _failure(error) and not _is_over(study.status):
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
        over = _is_over(status) and all(run.state == "ended" for run in seen.runs.values())
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
        error = next((error for error in sorted(errors, key=_urgency) if _failure(error)), None)
        if error and (failure := _failure(error)):
            work = error.work if isinstance(error, RunRefused) else None
            status = with_failure(status, study.metadata["generation"], failure, now, work)
        await publish(self._resources, body, status, new_events(study.status, status, summary), now)

    async def _refuse(self, body: dict[str, Any], old: TuningStudyStatus, error: ValidationError) -> None:
        """A spec that the CRD lets pass and the operator cannot read, for example from another version."""
        now = self._clock()
        problems = tuple(
            Problem(
                field=field_path(detail["loc"]),
                message=UNKNOWN_FIELD if detail["type"] == UNKNOWN else detail["msg"],
            )
            for detail in error.errors()
        )
        status = refused(old, body["metadata"]["generation"], problems, now)
        await publish(self._resources, body, status, new_events(old, status, StudySummary()), now)

    async def _forget(self, key: StudyKey) -> None:
        """End the study in the record; its runs go by their owner reference."""
        namespace = await self._resources.get("Namespace", "", key.namespace)
        gone = namespace is None or "deletionTimestamp" in namespace["metadata"]
        await self._server.forget(key, namespace_deleted=gone)
        self._observer.forget(key)
        self._last.pop(key, None)


def _status(body: dict[str, Any]) -> TuningStudyStatus:
    """Read the status without what only another version of the operator can read."""
    status = body.get("status", {})
    try:
        return TuningStudyStatus.model_validate(status, extra="ignore")
    except ValidationError as error:
        unread = {detail["loc"][0] for detail in error.errors()}
        known = {field: value for field, value in status.items() if field not in unread}
        return TuningStudyStatus.model_validate(known, extra="ignore")


def _unknown_fields(error: ValidationError) -> tuple[str, ...]:
    """Return the fields of a spec that the operator doesn't know; empty if anything else is wrong as well."""
    details = error.errors()
    if any(detail["type"] != UNKNOWN for detail in details):
        return ()
    return tuple(field_path(detail["loc"]) for detail in details)


def _is_over(status: TuningStudyStatus) -> bool:
    """Return whether nothing of a study waits for anything."""
    return status.phase in ENDED and (status.refit is None or status.refit.phase in ENDED)


def _urgency(error: Expected) -> tuple[bool, int]:
    """What a user has to fix comes first, and of several trials the first one."""
    if not isinstance(error, RunRefused):
        return True, 0
    return False, error.work.slot if isinstance(error.work, Worker) else error.work.trial


def _failure(error: Expected) -> Failure | None:
    """Return what the user should know about an error; None for one that passes by itself."""
    match error:
        case RunRefused():
            return error.failure
        case StudyServerUnavailable():
            return Failure(
                category="StudyServerUnavailable",
                message=f"The study server is unavailable: {error}.",
                remedy="Running trials continue, nothing is lost. If it lasts, check the pods of the study "
                "server and of its database.",
            )
        case KubeError(is_refusal=True):
            return Failure(
                category="KubernetesRefused",
                message=f"Kubernetes refuses a request of the operator: {error}",
                remedy="Check the operator's permissions (the chart's RBAC), and the cluster's admission "
                "policies and webhooks.",
            )
    return None
