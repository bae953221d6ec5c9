"""One pass over one study: observe, decide, act, publish. The only place where they meet."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from tuning_operator.kube.plan.actions import Action, Plan
from tuning_operator.kube.plan.decide import decide
from tuning_operator.kube.plan.observation import Observation
from tuning_operator.kube.ports.act import REFUSED, Actor, RunRefused
from tuning_operator.kube.ports.kubernetes import KubeApi, KubeError
from tuning_operator.kube.ports.observe import Observer
from tuning_operator.kube.ports.publish import publish
from tuning_operator.kube.ports.study_server import StudyServer, StudyServerUnavailable
from tuning_operator.kube.status.events import tell_story
from tuning_operator.kube.status.status import refused, with_trouble
from tuning_operator.protocol import Failure, Problem, StudyKey, StudySummary
from tuning_operator.resource import names
from tuning_operator.resource.study import TuningStudy, TuningStudySpec, TuningStudyStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """How a pass ended.

    Attributes:
        outcome: `gone` if the study no longer exists, `acted` if the pass carried out actions, `waiting` if
            there was nothing to do, `no_progress` if it carried out the same actions as the pass before.
        after: seconds until the study needs another pass; None if it needs one only when something happens.
    """

    outcome: Literal["gone", "waiting", "acted", "no_progress"]
    after: float | None = None


class Reconciler:
    """Brings one study after another to what its spec says."""

    def __init__(
        self,
        kube: KubeApi,
        server: StudyServer,
        observer: Observer,
        actor: Actor,
        clock: Callable[[], datetime],
    ) -> None:
        self._kube, self._server, self._observer, self._actor = kube, server, observer, actor
        self._clock = clock
        self._last: dict[StudyKey, tuple[Action, ...]] = {}

    async def reconcile(self, key: StudyKey) -> Result:
        """Do a pass.

        Raises:
            KubeError, StudyServerUnavailable, RunRefused: try again after a back-off.
        """
        body = await self._kube.get(names.KIND, key.namespace, key.name)
        if body is None or body["metadata"].get("deletionTimestamp"):
            await self._forget(key)
            return Result("gone")
        try:
            spec = TuningStudySpec.model_validate(body["spec"])
        except ValidationError as error:
            await self._refuse(body, error)
            return Result("waiting")
        return await self._pass(
            key, body, TuningStudy(metadata=body["metadata"], spec=spec, status=_status(body))
        )

    async def _pass(self, key: StudyKey, body: dict[str, Any], study: TuningStudy) -> Result:
        now, seen, plan = self._clock(), Observation(None), Plan((), study.status)
        try:
            seen = await self._observer.observe(key, study)
            plan = decide(study, seen, now)
            if plan.actions:
                log.info("%s: %s", key, ", ".join(map(str, plan.actions)))
            await self._actor.act(key, study, plan.actions)
        except (StudyServerUnavailable, RunRefused, KubeError) as error:
            if failure := _failure(error):
                of_refit = isinstance(error, RunRefused) and error.of_refit
                status = with_trouble(plan.status, study.metadata["generation"], failure, now, of_refit)
                events = tuple(tell_story(study.status, status, seen.summary or StudySummary()))
                await publish(self._kube, body, status, events, now)
            raise
        await publish(self._kube, body, plan.status, plan.events, now)
        if plan.actions and plan.actions == self._last.get(key):
            return Result("no_progress", plan.requeue_after)
        self._last[key] = plan.actions
        return Result("acted" if plan.actions else "waiting", plan.requeue_after)

    async def _refuse(self, body: dict[str, Any], error: ValidationError) -> None:
        """A spec that the CRD lets pass and the operator cannot read, from another version say."""
        old, now = _status(body), self._clock()
        problems = tuple(
            Problem(field=".".join(map(str, detail["loc"])), message=detail["msg"])
            for detail in error.errors()
        )
        status = refused(old, body["metadata"]["generation"], problems, now)
        await publish(self._kube, body, status, tuple(tell_story(old, status, StudySummary())), now)

    async def _forget(self, key: StudyKey) -> None:
        """The record is told; the Jobs go by their owner reference."""
        await self._server.forget(key)
        self._observer.forget(key)
        self._last.pop(key, None)


def _status(body: dict[str, Any]) -> TuningStudyStatus:
    """Read the status; one that another version wrote is made anew."""
    try:
        return TuningStudyStatus.model_validate(body.get("status", {}))
    except ValidationError:
        return TuningStudyStatus()


def _failure(error: Exception) -> Failure | None:
    """Return what the user should know of an error that ended a pass; None for one that goes by itself."""
    match error:
        case RunRefused():
            return error.failure
        case StudyServerUnavailable():
            return Failure(
                category="StudyServerUnavailable",
                message=f"The study server does not answer as it should: {error}.",
                remedy="Running trials go on, nothing is lost; look at the study server's pod if this lasts.",
            )
        case KubeError(status=status) if status in REFUSED:
            return Failure(
                category="KubernetesRefused",
                message=f"Kubernetes refuses a request of the operator: {error}",
                remedy="Check the operator's permissions (the chart's RBAC).",
            )
    return None
