"""Errors as replies: `{"detail": text, "problems": [{"field", "message"}]}`."""

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError

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
    app.add_exception_handler(errors.StudyError, _study_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(TimeoutError, _database_away)
    app.add_exception_handler(Fenced, _replaced)


async def _study_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, errors.StudyError)  # noqa: S101  it was registered for these
    return _reply(STATUS[type(error)], error.problems)


async def _invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  it was registered for these
    return _reply(422, [_problem(entry) for entry in error.errors()])


async def _database_away(_: Request, error: Exception) -> Response:
    log.warning("The database did not answer in time: %r", error)
    return _reply(503, [Problem(field="server", message="the database does not answer: try again")])


async def _replaced(_: Request, __: Exception) -> Response:
    message = "another study server writes the record now: this one ends; try again"
    return _reply(503, [Problem(field="server", message=message)])


def _problem(entry: dict[str, Any]) -> Problem:
    field = ".".join(str(part) for part in entry["loc"][1:])
    return Problem(field=field or "body", message=entry["msg"])


def _reply(status: int, problems: Sequence[Problem]) -> Response:
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    content = Refusal(detail=detail, problems=list(problems)).model_dump_json()
    return Response(content, status, HEADERS.get(status), media_type="application/json")
