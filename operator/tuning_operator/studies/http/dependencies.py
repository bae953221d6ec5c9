"""What routes depend on: the service, the study that the path names, and a caller who may use the path."""

from datetime import datetime
from typing import Annotated

from fastapi import Depends, Header
from starlette.requests import Request
from tuning_trainer.wire.codec import TRIAL_STARTED

from tuning_operator.protocol import StudyKey
from tuning_operator.resource import names
from tuning_operator.studies.auth.tokens import (
    Identity,
    Operator,
    TrialPod,
    authorize_operator,
    authorize_reader,
    authorize_study,
    authorize_trial,
    authorize_trial_or_operator,
    authorize_worker,
)
from tuning_operator.studies.service import Service
from tuning_operator.studies.study.engine import StudyEngine

STUDY = "/v1/studies/{namespace}/{name}"


async def service_of(request: Request) -> Service:
    """Return what the application serves."""
    service: Service = request.app.state.service
    return service


async def study_key(namespace: str, name: str) -> StudyKey:
    """Return the study that the path names."""
    return StudyKey(namespace, name)


Served = Annotated[Service, Depends(service_of)]
Study = Annotated[StudyKey, Depends(study_key)]


async def identify(request: Request) -> Identity:
    """Return who sends a request, as the gate has found out."""
    caller: Identity = request.state.caller
    return caller


Caller = Annotated[Identity, Depends(identify)]
Started = Annotated[
    datetime | None,
    Header(
        alias=TRIAL_STARTED,
        description="The `started` of the TrialView that the pod has. If the database has lost the trial and "
        "another one of its number has started since, the request is refused (409).",
    ),
]


async def operator(caller: Caller) -> None:
    """Admit only the operator. Raises Forbidden."""
    authorize_operator(caller)


async def trial_pod(
    service: Served, caller: Caller, key: Study, number: int, started: Started = None
) -> None:
    """Admit only the trial's own pod, or the worker's that has the trial.

    Raises Forbidden, NotFound, Conflict.
    """
    pod = caller if isinstance(caller, TrialPod) else None
    owns = pod is not None and pod.owns(*key, number)
    if not (owns or (pod and pod.is_worker_of(*key))):
        authorize_trial(caller, *key, number)  # before a study is loaded for anyone
    engine = await engine_of(service, key)
    if not (owns or (pod and engine.workers.has(pod.pod, number))):
        authorize_trial(caller, *key, number)
    authorize_study(caller, *key, engine.definition.uid)
    if started is not None:
        engine.check_same(number, started)


async def trial_pod_or_operator(
    service: Served, caller: Caller, key: Study, number: int, started: Started = None
) -> None:
    """Admit the operator and who `trial_pod` admits. Raises Forbidden, NotFound, Conflict."""
    if not isinstance(caller, Operator):
        await trial_pod(service, caller, key, number, started)


async def worker_pod(service: Served, caller: Caller, key: Study, worker: int) -> str:
    """Admit only the worker's own pod; return its name. Raises Forbidden, NotFound."""
    pod = authorize_worker(caller, *key, worker)
    authorize_study(caller, *key, (await engine_of(service, key)).definition.uid)
    return pod


async def refit_pod(service: Served, caller: Caller, key: Study) -> None:
    """Admit only the refit's own pod. Raises Forbidden, NotFound."""
    authorize_trial(caller, *key, names.REFIT)
    authorize_study(caller, *key, (await engine_of(service, key)).definition.uid)


async def refit_pod_or_operator(service: Served, caller: Caller, key: Study) -> None:
    """Admit the operator and the refit's own pod. Raises Forbidden, NotFound."""
    authorize_trial_or_operator(caller, *key, names.REFIT)
    authorize_study(caller, *key, (await engine_of(service, key)).definition.uid)


async def engine_of(service: Service, key: StudyKey) -> StudyEngine:
    """Return a study. Raises NotFound."""
    return service.studies.loaded(key) or await service.studies.find(key)


async def reader(caller: Caller, namespace: str) -> None:
    """Admit the operator and the namespace's readers. Raises Forbidden."""
    authorize_reader(caller, namespace)
