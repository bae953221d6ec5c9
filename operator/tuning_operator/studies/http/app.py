"""The study server's HTTP: reads requests, checks who sends them, and hands them to the studies."""

from importlib.metadata import version
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST

from tuning_operator.protocol import (
    AskRequest,
    AttributesRequest,
    Changes,
    FinishedStudy,
    ReportReply,
    ReportRequest,
    StudyDefinition,
    StudySummary,
    SuggestReply,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
)
from tuning_operator.studies.http import errors as app_errors
from tuning_operator.studies.http.callers import either, operator, pod, reader
from tuning_operator.studies.http.parts import STUDY, Served, Study, reply
from tuning_operator.studies.http.record import record_reply
from tuning_operator.studies.http.refit import refit
from tuning_operator.studies.http.reports import Reports
from tuning_operator.studies.service import Service

LONGEST_POLL = 300.0

open_to_all = APIRouter()
studies = APIRouter(prefix=STUDY)
trials = APIRouter(prefix=f"{STUDY}/trials/{{number}}")
changes = APIRouter(prefix="/v1/changes")

OPERATOR = [Depends(operator)]
POD = [Depends(pod)]
EITHER = [Depends(either)]


def create_app(service: Service) -> FastAPI:
    """Return the application that serves these studies."""
    app = FastAPI(
        title="TuningStudy study server",
        version=version("tuning-operator"),
        summary="Optuna studies over HTTP: the operator asks for trials, their pods report and tell results.",
        responses=app_errors.RESPONSES,
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    for router in (open_to_all, changes, studies, refit, trials):
        app.include_router(router)
    app_errors.install(app)
    app.add_middleware(Reports, service=service)
    return app


@studies.put("", dependencies=OPERATOR, response_model=StudySummary)
async def declare(service: Served, key: Study, definition: StudyDefinition) -> Response:
    """Create a study, or update it."""
    return reply(await service.studies.declare(key, definition))


@studies.get("", dependencies=OPERATOR, response_model=StudySummary)
async def standing(service: Served, key: Study) -> Response:
    """Return how a study stands."""
    return reply((await service.studies.find(key)).summary())


@studies.post("/ask", dependencies=OPERATOR, response_model=StudySummary)
async def ask(service: Served, key: Study, request: AskRequest) -> Response:
    """Top up the running trials."""
    with service.metrics.ask.time():
        return reply(await (await service.studies.find(key)).ask(request))


@studies.delete("", dependencies=OPERATOR, status_code=204)
async def forget(service: Served, key: Study) -> None:
    """End a study whose resource is gone."""
    await service.studies.forget(key)


@studies.get("/record", dependencies=[Depends(reader)], response_model=FinishedStudy)
async def record(service: Served, key: Study) -> Response:
    """Return all that a study's record holds."""
    return record_reply((await service.studies.find(key)).study)


@changes.get("", dependencies=OPERATOR, response_model=Changes)
async def changed(
    service: Served,
    after: str | None = None,
    timeout: Annotated[float, Query(ge=0, le=LONGEST_POLL)] = 25,  # noqa: ASYNC109  the protocol's word
) -> Response:
    """Return the studies that changed since the cursor; wait until there is one."""
    return reply(await service.changes(after, timeout))


@trials.get("", dependencies=POD, response_model=TrialView)
async def view(service: Served, key: Study, number: int) -> Response:
    """Return what a trainer needs of its trial."""
    return reply((await service.studies.find(key)).view(number))


@trials.post("/suggest", dependencies=POD, response_model=SuggestReply)
async def suggest(service: Served, key: Study, number: int, request: SuggestRequest) -> Response:
    """Return the value of one parameter."""
    value = await (await service.studies.find(key)).suggest(number, request)
    return reply(SuggestReply(value=value))


@trials.post("/report", dependencies=POD)
async def report(service: Served, key: Study, number: int, request: ReportRequest) -> ReportReply:
    """Keep intermediate values; say whether the trial should stop. Here for the document: Reports answers."""
    return ReportReply(prune=await (await service.studies.find(key)).report(number, request.values))


@trials.post("/attributes", dependencies=POD, response_model=TrialRecord)
async def attributes(service: Served, key: Study, number: int, request: AttributesRequest) -> Response:
    """Set user attributes and constraint values."""
    return reply(await (await service.studies.find(key)).set_attributes(number, request))


@trials.post("/result", dependencies=EITHER, response_model=TrialRecord)
async def result(service: Served, key: Study, number: int, request: TellRequest) -> Response:
    """End a trial; the first telling holds."""
    with service.metrics.tell.time():
        return reply(await (await service.studies.find(key)).tell(number, request))


@open_to_all.get("/healthz")
async def healthz() -> Response:
    """Answer: the process lives."""
    return Response("ok\n", media_type="text/plain")


@open_to_all.get("/readyz")
async def readyz(service: Served) -> Response:
    """Answer 200 once this server is the one that writes the record."""
    words, status = ("ready\n", 200) if service.ready else ("not ready\n", 503)
    return Response(words, status, media_type="text/plain")


@open_to_all.get("/metrics")
async def metrics(service: Served) -> Response:
    """Return metrics for Prometheus."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)
