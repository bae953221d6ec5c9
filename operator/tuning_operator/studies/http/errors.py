"""Errors as replies: `{"detail": text, "problems": [{"field", "message"}]}`."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from tuning_operator.protocol import Problem
from tuning_operator.resource.study import Model
from tuning_operator.studies import errors
from tuning_operator.studies.storage.errors import Fenced

log = logging.getLogger(__name__)

STATUS: dict[type[errors.StudyError], int] = {
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Refused: 422,
    errors.Unavailable: 503,
}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}


class Refusal(Model):
    """An error's reply."""

    detail: str
    problems: list[Problem]


RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": Refusal} for status in STATUS.values()}


def install(app: FastAPI) -> None:
    """Have the application reply so."""
    for kind in (errors.StudyError, RequestValidationError, TimeoutError, Fenced):
        app.add_exception_handler(kind, _handle)


def reply_to(error: Exception) -> Response:
    """Return the reply to a request that failed."""
    match error:
        case errors.StudyError():
            return _reply(STATUS[type(error)], error.problems)
        case RequestValidationError():
            return _reply(422, [_problem(entry["loc"][1:], entry["msg"]) for entry in error.errors()])
        case ValidationError():
            return _reply(422, [_problem(entry["loc"], entry["msg"]) for entry in error.errors()])
        case TimeoutError():
            log.warning("The database did not answer in time: %r", error)
            return _server(503, "the database does not answer: try again")
        case Fenced():
            return _server(503, "another study server writes the record now, and this one ends: try again")
    log.error("A request failed", exc_info=error)
    return _server(500, f"{type(error).__name__}: the server's log says more")


async def _handle(_: Request, error: Exception) -> Response:
    return reply_to(error)


def _server(status: int, message: str) -> Response:
    return _reply(status, [Problem(field="server", message=message)])


def _problem(place: Sequence[int | str], message: str) -> Problem:
    return Problem(field=".".join(str(part) for part in place) or "body", message=message)


def _reply(status: int, problems: Sequence[Problem]) -> Response:
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    content = Refusal(detail=detail, problems=list(problems)).model_dump_json()
    return Response(content, status, HEADERS.get(status), media_type="application/json")
