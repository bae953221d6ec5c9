"""The way of a report past FastAPI: by far the most frequent request, and FastAPI takes 0.2 ms for any."""

import re

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from tuning_operator.protocol import ReportRequest, StudyKey
from tuning_operator.studies.auth.tokens import authorize_trial
from tuning_operator.studies.http import errors as app_errors
from tuning_operator.studies.http.callers import caller_of
from tuning_operator.studies.service import Service

PATH = re.compile(r"/v1/studies/([^/]+)/([^/]+)/trials/([0-9]{1,9})/report")
PRUNE = {
    answer: Response(f'{{"prune":{str(answer).lower()}}}', media_type="application/json")
    for answer in (True, False)
}


class Reports:
    """Answers reports, and passes all else on to the application, which documents them."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request (ASGI)."""
        found = (
            PATH.fullmatch(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        )
        if found is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            reply = await self._report(request, StudyKey(found[1], found[2]), int(found[3]))
        except Exception as error:  # noqa: BLE001  each has its reply, those that nobody expected too
            reply = app_errors.reply_to(error)
        await reply(scope, receive, send)

    async def _report(self, request: Request, key: StudyKey, number: int) -> Response:
        service = self._service
        with service.metrics.report.time():
            authorize_trial(await caller_of(request, service.verifier), *key, number)
            told = ReportRequest.model_validate_json(await request.body())
            engine = service.studies.loaded(key) or await service.studies.find(key)
            return PRUNE[await engine.report(number, told.values)]
