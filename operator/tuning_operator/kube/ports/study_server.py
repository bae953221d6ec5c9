"""The study server as the operator needs it."""

import json
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote

import aiohttp
from pydantic import BaseModel, TypeAdapter, ValidationError

from tuning_operator.kube.plan.work import Refit, Trial
from tuning_operator.protocol import (
    AskRequest,
    Changes,
    Namespaces,
    Problem,
    RefitRequest,
    StudyDefinition,
    StudyKey,
    StudySummary,
    TellRequest,
    TrialRecord,
)

REQUEST_SECONDS = 30.0
MISDIRECTED = 421
M = TypeVar("M", StudySummary, TrialRecord, Changes, Namespaces)
PROBLEMS = TypeAdapter(list[Problem])


class StudyServerUnavailable(Exception):  # noqa: N818
    """The study server can't be reached, or its reply is not one that the protocol allows."""


class RecordElsewhere(StudyServerUnavailable):
    """Another study server has the study's record."""

    def __init__(self, message: str, ordinal: int) -> None:
        super().__init__(message)
        self.ordinal = ordinal


class DefinitionRefused(Exception):  # noqa: N818
    """The study server rejects a study's definition."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(f"{problem.field}: {problem.message}" for problem in problems))
        self.problems = problems


class StudyServer(Protocol):
    """The requests that the operator makes for a study. Every method raises StudyServerUnavailable."""

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
        """Create or update a study. Raises DefinitionRefused."""

    async def summary(self, key: StudyKey) -> StudySummary | None:
        """Return a study's summary; None if the server does not know the study."""

    async def ask(self, key: StudyKey, request: AskRequest) -> StudySummary:
        """Start trials until as many run as the request wants."""

    async def tell(self, key: StudyKey, work: Trial | Refit, request: TellRequest) -> TrialRecord:
        """End a trial or the refit unless it has already ended; return its record."""

    async def begin_refit(self, key: StudyKey, request: RefitRequest) -> StudySummary:
        """Prepare the record for a refit's result; repeating the request changes nothing."""

    async def forget(self, key: StudyKey, *, namespace_deleted: bool = False) -> None:
        """Report that the study's resource was deleted, maybe with its namespace."""


class Feed(Protocol):
    """The requests for all studies of a server. Every method raises StudyServerUnavailable."""

    async def namespaces(self) -> list[tuple[str, str]]:
        """Return name and uid of the namespaces with records whose TuningStudy was deleted."""

    async def forget_namespace(self, namespace: str, uid: str) -> None:
        """Report that a namespace was deleted."""

    async def changes(self, after: str | None, timeout: float) -> Changes:  # noqa: ASYNC109
        """Wait up to `timeout` seconds for studies that changed since the cursor."""


class HttpStudyServer:
    """StudyServer and Feed over HTTP. Token and CA are read for each request, since both are rotated."""

    def __init__(self, url: str, token_file: Path, ca_file: Path | None = None) -> None:
        self.url, self._token_file, self._ca_file = url.rstrip("/"), token_file, ca_file
        self.away: StudyServerUnavailable | None = None
        """Why the last request for changes failed; such a request is always in flight."""
        self._ca = b""
        self._tls: ssl.SSLContext | bool = True
        self._http = aiohttp.ClientSession()
        self._summaries: dict[StudyKey, tuple[_Reply, StudySummary]] = {}
        """The last summary of each study, with the reply that it was read from."""

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
        """Create or update a study. Raises DefinitionRefused."""
        reply = await self._send("PUT", _path(key), definition)
        if reply.status in (409, 422):
            raise DefinitionRefused(reply.problems())
        return reply.read(StudySummary)

    async def summary(self, key: StudyKey) -> StudySummary | None:
        """Return a study's summary; None if the server does not know the study.

        Most passes over a large study find the same reply as the one before, which takes long to read.
        """
        reply = await self._send("GET", _path(key))
        if reply.status == 404:
            return None
        known = self._summaries.get(key)
        if known is None or known[0] != reply:
            known = self._summaries[key] = reply, reply.read(StudySummary)
        return known[1]

    async def ask(self, key: StudyKey, request: AskRequest) -> StudySummary:
        """Start trials until as many run as the request wants."""
        return (await self._send("POST", f"{_path(key)}/ask", request)).read(StudySummary)

    async def tell(self, key: StudyKey, work: Trial | Refit, request: TellRequest) -> TrialRecord:
        """End a trial or the refit unless it has already ended; return its record."""
        return (await self._send("POST", f"{_path(key)}/{work.path}/result", request)).read(TrialRecord)

    async def begin_refit(self, key: StudyKey, request: RefitRequest) -> StudySummary:
        """Prepare the record for a refit's result; repeating the request changes nothing."""
        return (await self._send("PUT", f"{_path(key)}/refit", request)).read(StudySummary)

    async def forget(self, key: StudyKey, *, namespace_deleted: bool = False) -> None:
        """Report that the study's resource was deleted, maybe with its namespace."""
        self._summaries.pop(key, None)
        query = {"namespaceDeleted": "true"} if namespace_deleted else None
        reply = await self._send("DELETE", _path(key), query=query)
        if reply.status not in (204, 404):
            raise StudyServerUnavailable(str(reply))

    async def namespaces(self) -> list[tuple[str, str]]:
        """Return name and uid of the namespaces with records whose TuningStudy was deleted."""
        return (await self._send("GET", "/v1/namespaces")).read(Namespaces).namespaces

    async def forget_namespace(self, namespace: str, uid: str) -> None:
        """Report that a namespace was deleted."""
        reply = await self._send("DELETE", f"/v1/namespaces/{quote(namespace, safe='')}", query={"uid": uid})
        if reply.status != 204:
            raise StudyServerUnavailable(str(reply))

    async def changes(self, after: str | None, timeout: float) -> Changes:  # noqa: ASYNC109
        """Wait up to `timeout` seconds for studies that changed since the cursor."""
        query = {"timeout": str(timeout), **({"after": after} if after else {})}
        try:
            changes = (await self._send("GET", "/v1/changes", query=query, wait=timeout)).read(Changes)
        except StudyServerUnavailable as error:
            self.away = error
            raise
        self.away = None
        return changes

    async def _send(
        self,
        method: str,
        path: str,
        body: BaseModel | None = None,
        *,
        query: dict[str, str] | None = None,
        wait: float = 0.0,
    ) -> "_Reply":
        try:
            token = self._token_file.read_text().strip()
        except OSError as error:
            raise StudyServerUnavailable(f"the operator's token can't be read: {error}") from error
        try:
            tls = self._current_tls()
        except OSError as error:  # ssl.SSLError is one
            raise StudyServerUnavailable(f"the CA in {self._ca_file} can't be used: {error}") from error
        url = f"{self.url}{path}"
        try:
            async with self._http.request(
                method,
                url,
                params=query,
                data=body.model_dump_json(by_alias=True) if body is not None else None,
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS + wait),
                allow_redirects=False,
                ssl=tls,
            ) as response:
                reply = _Reply(f"{method} {url}", response.status, await response.read())
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            silent = f"no reply within {REQUEST_SECONDS + wait:g} s"
            reason = str(error) or (silent if isinstance(error, TimeoutError) else type(error).__name__)
            raise StudyServerUnavailable(f"{method} {url} failed: {reason}") from error
        if (ordinal := reply.elsewhere()) is not None:
            raise RecordElsewhere(str(reply), ordinal)
        return reply

    def _current_tls(self) -> ssl.SSLContext | bool:
        """Return the TLS settings; connections made with those of an earlier CA are not used again."""
        if self._ca_file and (ca := self._ca_file.read_bytes()) != self._ca:
            self._tls = ssl.create_default_context(cafile=str(self._ca_file))
            self._ca = ca
        return self._tls


@dataclass(frozen=True)
class _Reply:
    request: str
    status: int
    body: bytes

    def __str__(self) -> str:
        found = self._problems()  # None: it is not from the study server itself
        text = self.body.decode(errors="replace") if found is None else "; ".join(p.message for p in found)
        return f"{self.request} returned {self.status}: {text[:500]}"

    def read(self, model: type[M]) -> M:
        if self.status >= 300:
            raise StudyServerUnavailable(str(self))
        try:
            return model.model_validate_json(self.body, extra="ignore")
        except ValidationError as error:
            raise StudyServerUnavailable(f"{self}; this is not a {model.__name__}: {error}") from error

    def problems(self) -> list[Problem]:
        found = self._problems()
        if found is None:
            raise StudyServerUnavailable(str(self))
        return found

    def elsewhere(self) -> int | None:
        """Return the ordinal of the study server that has the study, if it is another one."""
        if self.status != MISDIRECTED:
            return None
        try:
            return int(json.loads(self.body)["studyServer"])
        except (ValueError, KeyError, TypeError):
            raise StudyServerUnavailable(str(self)) from None

    def _problems(self) -> list[Problem] | None:
        try:
            return PROBLEMS.validate_python(json.loads(self.body)["problems"], extra="ignore")
        except (ValueError, KeyError, TypeError):
            return None


def _path(key: StudyKey) -> str:
    return f"/v1/studies/{quote(key.namespace, safe='')}/{quote(key.name, safe='')}"
