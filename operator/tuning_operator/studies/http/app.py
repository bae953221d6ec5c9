"""The HTTP API of the study server: the application, and the routes of studies and trials."""

from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request

from tuning_operator.protocol import (
    AskRequest,
    AttributesRequest,
    Changes,
    FinishedStudy,
    Namespaces,
    Records,
    StudyDefinition,
    StudySummary,
    SuggestReply,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
)
from tuning_operator.studies.auth.tokens import Operator, Reader
from tuning_operator.studies.http.dependencies import (
    STUDY,
    Served,
    Study,
    operator,
    reader,
    trial_pod,
    trial_pod_or_operator,
)
from tuning_operator.studies.http.gate import Gate, authenticate
from tuning_operator.studies.http.refit import refit
from tuning_operator.studies.http.replies import RESPONSES, add_error_handlers, record_reply, reply
from tuning_operator.studies.http.reports import reports
from tuning_operator.studies.http.workers import workers
from tuning_operator.studies.metrics import ALL
from tuning_operator.studies.service import Service

LONGEST_POLL = 300.0

public = APIRouter()
records = APIRouter(prefix="/v1/studies/{namespace}")
studies = APIRouter(prefix=STUDY)
trials = APIRouter(prefix=f"{STUDY}/trials/{{number}}")
changes = APIRouter(prefix="/v1/changes")
namespaces = APIRouter(prefix="/v1/namespaces")

OPERATOR = [Depends(operator)]
POD = [Depends(trial_pod)]
POD_OR_OPERATOR = [Depends(trial_pod_or_operator)]


def create_app(service: Service) -> FastAPI:
    """Return the application that serves these studies."""
    app = FastAPI(
        title="TuningStudy study server",
        version=version("tuning-operator"),
        summary="Optuna studies over HTTP: the operator asks for trials, pods report values and results.",
        responses=RESPONSES,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for router in (public, changes, namespaces, records, studies, refit, trials, reports, workers):
        app.include_router(router)
    add_error_handlers(app)
    app.add_middleware(Gate, service=service)
    return app


@studies.put("", dependencies=OPERATOR, response_model=StudySummary)
async def declare(service: Served, key: Study, definition: StudyDefinition) -> Response:
    """Create a study, or update it."""
    summary = await service.studies.declare(key, definition)
    service.pace.declared(key, summary)
    return reply(summary)


@studies.get("", dependencies=OPERATOR, response_model=StudySummary)
async def summary(service: Served, key: Study) -> Response:
    """Return a summary of a study."""
    return reply(await (await service.studies.find(key)).summary())


@studies.post("/ask", dependencies=OPERATOR, response_model=StudySummary)
async def ask(service: Served, key: Study, request: AskRequest) -> Response:
    """Top up the running trials."""
    with service.metrics.ask.time():
        return reply(await (await service.studies.find(key)).ask(request))


@studies.delete("", dependencies=OPERATOR, status_code=204)
async def forget(
    service: Served, key: Study, namespace_deleted: Annotated[bool, Query(alias="namespaceDeleted")] = False
) -> None:
    """End a study whose TuningStudy was deleted, maybe with its namespace."""
    await service.studies.forget(key, namespace_deleted=namespace_deleted)
    service.pace.forget(key)


@studies.get("/record", dependencies=[Depends(reader)], response_model=FinishedStudy)
async def record(service: Served, key: Study, first: Annotated[int, Query(ge=0)] = 0) -> Response:
    """Return the record of a study, with the trials from a number on."""
    return record_reply(await (await service.studies.find(key)).whole(first))


@records.get("", dependencies=[Depends(reader)], response_model=Records)
async def all_records(service: Served, namespace: str) -> Response:
    """Return the records of a namespace, also those whose TuningStudy was deleted."""
    return reply(await service.studies.records(namespace))


@namespaces.get("", dependencies=OPERATOR, response_model=Namespaces)
async def all_namespaces(service: Served) -> Response:
    """Return the namespaces with records whose TuningStudy was deleted."""
    return reply(Namespaces(namespaces=await service.studies.namespaces()))


@namespaces.delete("/{namespace}", dependencies=OPERATOR, status_code=204)
async def forget_namespace(service: Served, namespace: str, uid: str) -> None:
    """Keep the records of a deleted namespace out of reach of a later one of this name."""
    await service.studies.forget_namespace(namespace, uid)


@changes.get("", dependencies=OPERATOR, response_model=Changes)
async def changed(
    service: Served,
    after: str | None = None,
    timeout: Annotated[float, Query(ge=0, le=LONGEST_POLL)] = 25,  # noqa: ASYNC109  part of the protocol
) -> Response:
    """Return the studies that changed since the cursor; wait until there is one."""
    return reply(await service.changes(after, timeout))


@trials.get("", dependencies=POD, response_model=TrialView)
async def view(service: Served, key: Study, number: int) -> Response:
    """Return a trial as a trainer needs it."""
    found = await (await service.studies.find(key)).view(number)
    service.pace.seen(key, found.trial)
    return reply(found)


@trials.post("/suggest", dependencies=POD, response_model=SuggestReply)
async def suggest(service: Served, key: Study, number: int, request: SuggestRequest) -> Response:
    """Return the value of one parameter."""
    value = await (await service.studies.find(key)).suggest(number, request)
    return reply(SuggestReply(value=value))


@trials.post("/attributes", dependencies=POD, response_model=TrialRecord)
async def attributes(service: Served, key: Study, number: int, request: AttributesRequest) -> Response:
    """Set user attributes and constraint values."""
    return reply(await (await service.studies.find(key)).set_attributes(number, request))


@trials.post("/result", dependencies=POD_OR_OPERATOR, response_model=TrialRecord)
async def result(service: Served, key: Study, number: int, request: TellRequest) -> Response:
    """End a trial. The first result stays; sending it again is not an error."""
    with service.metrics.tell.time():
        ended = await (await service.studies.find(key)).tell(number, request)
    service.pace.ended(key, ended)
    return reply(ended)


@public.get("/healthz")
async def healthz() -> Response:
    """Reply 200: the process is alive."""
    return Response("ok\n", media_type="text/plain")


@public.get("/readyz")
async def readyz(service: Served) -> Response:
    """Reply 200 once this server is the only writer of the database."""
    text, status = ("ready\n", 200) if service.ready else ("not ready\n", 503)
    return Response(text, status, media_type="text/plain")


@public.get("/metrics")
async def metrics(request: Request, service: Served) -> Response:
    """Return metrics for Prometheus; studies are named for the operator, and for their readers."""
    caller = await authenticate(request.headers, service) if "Authorization" in request.headers else None
    match caller:
        case Operator():
            named: str | None = ALL
        case Reader(namespace=namespace):
            named = namespace
        case _:
            named = None
    return Response(service.metrics.render(named), media_type=CONTENT_TYPE_LATEST)
