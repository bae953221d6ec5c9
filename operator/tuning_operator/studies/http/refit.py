"""The routes of the refit (final training): the operator starts it, and its pod uses them like a trial's."""

from fastapi import APIRouter, Depends, Response

from tuning_operator.protocol import (
    AttributesRequest,
    FinishedStudy,
    RefitRequest,
    ReportReply,
    ReportRequest,
    StudySummary,
    SuggestReply,
    SuggestRequest,
    TellRequest,
    TrialRecord,
    TrialView,
)
from tuning_operator.studies.auth.tokens import Operator
from tuning_operator.studies.http.dependencies import (
    STUDY,
    Caller,
    Served,
    Study,
    operator,
    refit_pod,
    refit_pod_or_operator,
)
from tuning_operator.studies.http.replies import record_reply, reply

refit = APIRouter(prefix=f"{STUDY}/refit")

POD = [Depends(refit_pod)]


@refit.put("", dependencies=[Depends(operator)], response_model=StudySummary)
async def begin(service: Served, key: Study, request: RefitRequest) -> Response:
    """Start the final training. Sending the same trial and digest again changes nothing."""
    engine = await service.studies.find(key)
    await engine.refit.begin(request)
    return reply(await engine.summary())


@refit.get("", dependencies=POD, response_model=TrialView)
async def view(service: Served, key: Study) -> Response:
    """Return the trial whose parameters are used."""
    engine = await service.studies.find(key)
    return reply(await engine.refit.view(engine.definition))


@refit.get("/study", dependencies=POD, response_model=FinishedStudy)
async def finished_study(service: Served, key: Study) -> Response:
    """Return the whole study, for the code below a script's `optimize`."""
    return record_reply(await (await service.studies.find(key)).whole())


@refit.post("/suggest", dependencies=POD, response_model=SuggestReply)
async def suggest(service: Served, key: Study, request: SuggestRequest) -> Response:
    """Return the trial's value of a parameter."""
    return reply(SuggestReply(value=(await service.studies.find(key)).refit.suggest(request)))


@refit.post("/report", dependencies=POD, response_model=ReportReply)
async def report(service: Served, key: Study, request: ReportRequest) -> Response:
    """Check intermediate values; they are not kept, and the final training is never pruned."""
    engine = await service.studies.find(key)
    engine.refit.check_report(engine.definition, request.values)
    return reply(ReportReply(prune=False))


@refit.post("/attributes", dependencies=POD, response_model=TrialRecord)
async def attributes(service: Served, key: Study, request: AttributesRequest) -> Response:
    """Set user attributes, for example `model`: where the model is."""
    return reply(await (await service.studies.find(key)).refit.set_attributes(request))


@refit.post("/result", dependencies=[Depends(refit_pod_or_operator)], response_model=TrialRecord)
async def result(service: Served, key: Study, request: TellRequest, caller: Caller) -> Response:
    """End the final training or, when its pod sends FAIL, one attempt. The first result stays."""
    engine = await service.studies.find(key)
    by_pod = not isinstance(caller, Operator)
    return reply(await engine.refit.tell(request, engine.definition, by_pod=by_pod))
