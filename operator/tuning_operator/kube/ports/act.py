"""Doing what was decided. Every action may be repeated: what is there already, or gone already, is done."""

from collections.abc import Callable, Sequence

from tuning_operator.kube.jobs.diagnose import QUOTA_REMEDY, TRIAL, Subject, refit_subject
from tuning_operator.kube.jobs.manifests import Runtime, job, trainer_config_map
from tuning_operator.kube.plan.actions import (
    Action,
    Ask,
    BeginRefit,
    FailRefit,
    Start,
    StartRefit,
    Stop,
    StopRefit,
    Tell,
)
from tuning_operator.kube.plan.work import Assignment, refit_assignment, trial_assignment
from tuning_operator.kube.ports.kubernetes import KubeApi, KubeError
from tuning_operator.kube.ports.study_server import StudyServer
from tuning_operator.protocol import AskRequest, Failure, RefitRequest, StudyKey, TellRequest
from tuning_operator.resource.names import REFIT, job_name
from tuning_operator.resource.study import TuningStudy

REFUSED = frozenset({400, 403, 422})
"""The API server will say the same next time, until someone mends something."""


class RunRefused(Exception):  # noqa: N818
    """A trial's or the refit's run cannot be made as the study wants it."""

    def __init__(self, failure: Failure, of_refit: bool) -> None:
        super().__init__(failure.message)
        self.failure, self.of_refit = failure, of_refit


class Actor:
    """Carries out actions on the study server and on the cluster, where a trial's run is a Job."""

    def __init__(self, kube: KubeApi, server: StudyServer, runtime: Callable[[], Runtime]) -> None:
        self._kube, self._server, self._runtime = kube, server, runtime

    async def act(self, key: StudyKey, study: TuningStudy, actions: Sequence[Action]) -> None:
        """Carry out the actions in order.

        Raises:
            RunRefused: the API server refuses a trial's Job.
            KubeError, StudyServerUnavailable: an action failed; those after it were not tried.
        """
        for action in actions:
            match action:
                case BeginRefit() | StartRefit() | StopRefit() | FailRefit():
                    await self._refit(key, study, action)
                case Tell():
                    request = TellRequest(state=action.state, failure=action.failure)
                    await self._server.tell(key, action.trial, request)
                case Ask():
                    request_ = AskRequest(parallelism=action.parallelism, max_trials=action.max_trials)
                    await self._server.ask(key, request_)
                case Stop():
                    await self._kube.delete_job(key.namespace, job_name(key.name, action.trial))
                case Start():
                    await self._start(study, trial_assignment(study, action.trial), TRIAL)

    async def _refit(
        self, key: StudyKey, study: TuningStudy, action: BeginRefit | StartRefit | StopRefit | FailRefit
    ) -> None:
        spec = study.spec.refit
        match action:
            case BeginRefit():
                request = RefitRequest(trial=action.trial, digest=action.digest)
                await self._server.begin_refit(key, request)
            case StartRefit() if spec:
                request = RefitRequest(trial=action.trial, digest=action.digest)
                await self._start(study, refit_assignment(study, spec, request), refit_subject(study))
            case StopRefit():
                await self._kube.delete_job(key.namespace, job_name(key.name, REFIT))
            case FailRefit():
                await self._server.tell_refit(key, TellRequest(state="FAIL", failure=action.failure))

    async def _start(self, study: TuningStudy, work: Assignment, subject: Subject) -> None:
        runtime = self._runtime()
        try:
            await self._kube.create(trainer_config_map(study, runtime))
            await self._kube.create(job(study, work, runtime))
        except KubeError as error:
            if error.status not in REFUSED:
                raise
            raise RunRefused(_explained(error, subject), subject is not TRIAL) from error


def _explained(error: KubeError, subject: Subject) -> Failure:
    if "exceeded quota" in error.message:
        return Failure(category="Quota", message=error.message, remedy=QUOTA_REMEDY)
    remedy = f"Correct {subject.template}; `kubectl explain job.spec.template.spec` describes its fields."
    message = f"The {subject.noun}'s Job is refused: {error.message}"
    return Failure(category="JobRefused", message=message, remedy=remedy)
