"""Replies: a model, a whole study, or an error as `{"detail": text, "problems": [{"field", "message"}]}`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from tuning_operator.protocol import Problem
from tuning_operator.resource.study import Model
from tuning_operator.resource.text import field_path
from tuning_operator.studies import errors
from tuning_operator.studies.storage.base import Fenced

log = logging.getLogger(__name__)

STATUS: dict[type[errors.StudyError], int] = {
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.TooSlow: 408,
    errors.TooLarge: 413,
    errors.Elsewhere: 421,
    errors.Refused: 422,
    errors.Unavailable: 503,
}
HEADERS = {
    401: {"WWW-Authenticate": "Bearer"},
    408: {"Connection": "close"},
    503: {"Retry-After": "1"},
}


class ErrorReply(Model):
    """The reply to a request that failed."""

    detail: str
    problems: list[Problem]
    study_server: int | None = Field(
        None, description="Of status 421: the ordinal of the study server that has the study."
    )


RESPONSES: dict[int | str, dict[str, Any]] = {status: {"model": ErrorReply} for status in STATUS.values()}


def reply(model: BaseModel) -> Response:
    """Return a model as the protocol writes it."""
    return Response(model.model_dump_json(by_alias=True), media_type="application/json")


def record_reply(pieces: Iterator[bytes]) -> StreamingResponse:
    """Return the study whose JSON these pieces are; each is made in a thread."""
    return StreamingResponse(_in_thread(pieces), media_type="application/json")


async def _in_thread(rest: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (piece := await asyncio.to_thread(next, rest, None)) is not None:
        yield piece


def add_error_handlers(app: FastAPI) -> None:
    """Make the application reply to errors in this form."""

    async def handle(_: Request, error: Exception) -> Response:
        return error_reply(error)

    for kind in (errors.StudyError, RequestValidationError, HTTPException, TimeoutError, Fenced):
        app.add_exception_handler(kind, handle)


def error_reply(error: Exception) -> Response:
    """Return the reply to a request that failed."""
    match error:
        case errors.Elsewhere():
            return _error(STATUS[errors.Elsewhere], error.problems, error.server)
        case errors.StudyError():
            return _error(STATUS[type(error)], error.problems)
        case RequestValidationError():
            return _error(422, [_problem(entry["loc"][1:], entry["msg"]) for entry in error.errors()])
        case ValidationError():
            return _error(422, [_problem(entry["loc"], entry["msg"]) for entry in error.errors()])
        case HTTPException():  # of the framework, for example for a path that does not exist
            return _error(error.status_code, [Problem(field="request", message=str(error.detail))])
        case TimeoutError():
            log.warning("The database did not answer in time: %r", error)
            return _server_error(503, "the database does not answer; try again later")
        case Fenced():
            return _server_error(503, "another study server has taken over; try again")
    log.error("A request failed", exc_info=error)
    return _server_error(500, f"internal error ({type(error).__name__}); see the study server's log")


def _server_error(status: int, message: str) -> Response:
    return _error(status, [Problem(field="server", message=message)])


def _problem(place: Sequence[int | str], message: str) -> Problem:
    return Problem(field=field_path(place) or "body", message=message)


def _error(status: int, problems: Sequence[Problem], study_server: int | None = None) -> Response:
    detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
    reply = ErrorReply(detail=detail, problems=list(problems), study_server=study_server)
    content = reply.model_dump_json(by_alias=True, exclude_none=True)
    return Response(content, status, HEADERS.get(status), media_type="application/json")
