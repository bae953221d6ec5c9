"""The study server as the operator needs it."""

import json
import ssl
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from tuning_operator.protocol import (
    AskRequest,
    Changes,
    Problem,
    RefitRequest,
    StudyDefinition,
    StudyKey,
    StudySummary,
    TellRequest,
    TrialRecord,
)

REQUEST_SECONDS = 30.0
M = TypeVar("M", StudySummary, TrialRecord, Changes)
PROBLEMS = TypeAdapter(list[Problem])


class StudyServerUnavailable(Exception):  # noqa: N818
    """The study server does not answer, or answers what it should not."""


class DefinitionRefused(Exception):  # noqa: N818
    """The study server cannot run a study so defined."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


class StudyServer(Protocol):
    """What the operator asks of the study server. Every method raises StudyServerUnavailable."""

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
        """Create or update a study. Raises DefinitionRefused."""

    async def summary(self, key: StudyKey) -> StudySummary | None:
        """Return a study's summary; None if the server does not know the study."""

    async def ask(self, key: StudyKey, request: AskRequest) -> StudySummary:
        """Top up the running trials."""

    async def tell(self, key: StudyKey, trial: int, request: TellRequest) -> TrialRecord:
        """End a trial, unless it has ended already; return it as it is then."""

    async def begin_refit(self, key: StudyKey, request: RefitRequest) -> StudySummary:
        """Have the record take a refit's result; the same request again changes nothing."""

    async def tell_refit(self, key: StudyKey, request: TellRequest) -> TrialRecord:
        """End the refit, unless it has ended already; return it as if it were a trial."""

    async def forget(self, key: StudyKey) -> None:
        """Say that the study's resource is gone."""

    async def changes(self, after: str | None, timeout: float) -> Changes:  # noqa: ASYNC109
        """Wait up to `timeout` seconds for studies that changed since the cursor."""


class HttpStudyServer:
    """StudyServer over HTTP."""

    def __init__(self, url: str, token_file: Path, ca_file: Path | None = None) -> None:
        verify = ssl.create_default_context(cafile=str(ca_file)) if ca_file else True
        self._token_file = token_file
        self._http = httpx.AsyncClient(base_url=url.rstrip("/"), verify=verify, timeout=REQUEST_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
        """Create or update a study. Raises DefinitionRefused."""
        response = await self._send("PUT", _path(key), definition)
        if response.status_code in (409, 422):
            raise DefinitionRefused(_problems(response))
        return _read(StudySummary, response)

    async def summary(self, key: StudyKey) -> StudySummary | None:
        """Return a study's summary; None if the server does not know the study."""
        response = await self._send("GET", _path(key))
        return None if response.status_code == httpx.codes.NOT_FOUND else _read(StudySummary, response)

    async def ask(self, key: StudyKey, request: AskRequest) -> StudySummary:
        """Top up the running trials."""
        return _read(StudySummary, await self._send("POST", f"{_path(key)}/ask", request))

    async def tell(self, key: StudyKey, trial: int, request: TellRequest) -> TrialRecord:
        """End a trial, unless it has ended already; return it as it is then."""
        return _read(TrialRecord, await self._send("POST", f"{_path(key)}/trials/{trial}/result", request))

    async def begin_refit(self, key: StudyKey, request: RefitRequest) -> StudySummary:
        """Have the record take a refit's result; the same request again changes nothing."""
        return _read(StudySummary, await self._send("PUT", f"{_path(key)}/refit", request))

    async def tell_refit(self, key: StudyKey, request: TellRequest) -> TrialRecord:
        """End the refit, unless it has ended already; return it as if it were a trial."""
        return _read(TrialRecord, await self._send("POST", f"{_path(key)}/refit/result", request))

    async def forget(self, key: StudyKey) -> None:
        """Say that the study's resource is gone."""
        response = await self._send("DELETE", _path(key))
        if response.status_code not in (200, 204, 404):
            raise StudyServerUnavailable(_described(response))

    async def changes(self, after: str | None, timeout: float) -> Changes:  # noqa: ASYNC109
        """Wait up to `timeout` seconds for studies that changed since the cursor."""
        query = {"timeout": str(timeout), **({"after": after} if after else {})}
        response = await self._send("GET", "/v1/changes", query=query, seconds=timeout + REQUEST_SECONDS)
        return _read(Changes, response)

    async def _send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: dict[str, str] | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> httpx.Response:
        try:
            token = self._token_file.read_text().strip()
        except OSError as error:
            raise StudyServerUnavailable(f"the operator has no token: {error}") from error
        try:
            return await self._http.request(
                method,
                path,
                params=query,
                content=body.model_dump_json(by_alias=True) if body is not None else None,
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=seconds,
            )
        except httpx.HTTPError as error:
            raise StudyServerUnavailable(f"{method} {path}: {error!r}") from error


def _path(key: StudyKey) -> str:
    return f"/v1/studies/{quote(key.namespace, safe='')}/{quote(key.name, safe='')}"


def _read(model: type[M], response: httpx.Response) -> M:
    if response.status_code >= 400:
        raise StudyServerUnavailable(_described(response))
    try:
        return model.model_validate_json(response.content)
    except ValidationError as error:
        raise StudyServerUnavailable(f"{_described(response)} is no {model.__name__}: {error}") from error


def _described(response: httpx.Response) -> str:
    request = response.request
    return f"{request.method} {request.url.path} answered {response.status_code}: {response.text[:500]}"


def _problems(response: httpx.Response) -> list[Problem]:
    try:
        return PROBLEMS.validate_python(json.loads(response.content)["problems"])
    except (ValueError, KeyError, TypeError):
        raise StudyServerUnavailable(_described(response)) from None
