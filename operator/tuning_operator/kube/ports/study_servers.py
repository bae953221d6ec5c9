"""Several study servers as one: each study's requests go to the server that has its record."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tuning_operator.kube.plan.work import Refit, Trial
from tuning_operator.kube.ports.study_server import HttpStudyServer, RecordElsewhere, StudyServerUnavailable
from tuning_operator.protocol import (
    AskRequest,
    RefitRequest,
    StudyDefinition,
    StudyKey,
    StudySummary,
    TellRequest,
    TrialRecord,
)

T = TypeVar("T")


@dataclass
class Place:
    """Where a study is, or will be declared."""

    ordinal: int
    recorded: bool
    """Whether the study has a record, so that it stays there."""
    running: int = 0
    """How many of its trials were running when that was last seen."""


class StudyServers:
    """StudyServer for the servers of an installation, by their ordinals.

    Remembers where studies are; what it does not know, any server knows. A new study is declared to the
    server whose studies have the fewest running trials.
    """

    def __init__(self, servers: Sequence[HttpStudyServer]) -> None:
        self._servers = servers
        self._places: dict[StudyKey, Place] = {}

    def url(self, key: StudyKey) -> str:
        """Return the address of the study's server, for its pods."""
        return self._servers[self._place(key).ordinal].url

    async def declare(self, key: StudyKey, definition: StudyDefinition) -> StudySummary:
        """Create or update a study. Raises DefinitionRefused."""
        return self._seen(key, await self._send(key, lambda server: server.declare(key, definition)))

    async def summary(self, key: StudyKey) -> StudySummary | None:
        """Return a study's summary; None if no server knows the study."""
        summary = await self._send(key, lambda server: server.summary(key))
        return summary and self._seen(key, summary)

    async def ask(self, key: StudyKey, request: AskRequest) -> StudySummary:
        """Start trials until as many run as the request wants."""
        return self._seen(key, await self._send(key, lambda server: server.ask(key, request)))

    async def tell(self, key: StudyKey, work: Trial | Refit, request: TellRequest) -> TrialRecord:
        """End a trial or the refit unless it has already ended; return its record."""
        return await self._send(key, lambda server: server.tell(key, work, request))

    async def begin_refit(self, key: StudyKey, request: RefitRequest) -> StudySummary:
        """Prepare the record for a refit's result; repeating the request changes nothing."""
        return self._seen(key, await self._send(key, lambda server: server.begin_refit(key, request)))

    async def forget(self, key: StudyKey, *, namespace_deleted: bool = False) -> None:
        """Report that the study's resource was deleted, maybe with its namespace."""
        await self._send(key, lambda server: server.forget(key, namespace_deleted=namespace_deleted))
        self._places.pop(key, None)

    async def _send(self, key: StudyKey, request: Callable[[HttpStudyServer], Awaitable[T]]) -> T:
        """Send a request to the study's server; while there is no record, to the first one that answers."""
        place = self._place(key)
        if place.recorded:
            ordinals = [place.ordinal]
        else:
            ordinals = sorted(range(len(self._servers)), key=lambda ordinal: ordinal != place.ordinal)
        failures: list[StudyServerUnavailable] = []
        for ordinal in ordinals:
            try:
                reply = await self._request(ordinal, request)
            except RecordElsewhere as elsewhere:
                self._places[key] = Place(elsewhere.ordinal, recorded=True)
                return await self._request(elsewhere.ordinal, request)
            except StudyServerUnavailable as error:
                failures.append(error)
            else:
                place.ordinal = ordinal
                return reply
        raise failures[0]

    async def _request(self, ordinal: int, request: Callable[[HttpStudyServer], Awaitable[T]]) -> T:
        if ordinal >= len(self._servers):
            raise StudyServerUnavailable(
                f"the study's record belongs to study server {ordinal}, which is not installed: set "
                f"studyServer.replicas of the chart to {ordinal + 1} or more"
            )
        server = self._servers[ordinal]
        if server.away and len(self._servers) > 1:
            raise server.away  # if each request waited for its timeout, so would the studies of other servers
        return await request(server)

    def _place(self, key: StudyKey) -> Place:
        return self._places.setdefault(key, Place(self._least_loaded(), recorded=False))

    def _seen(self, key: StudyKey, summary: StudySummary) -> StudySummary:
        place = self._place(key)
        place.recorded, place.running = True, summary.counts.running
        return summary

    def _least_loaded(self) -> int:
        """Return the server with the fewest running trials; if there are several, the fewest studies."""
        loads = [(server.away is not None, 0, 0) for server in self._servers]
        for place in self._places.values():
            if place.ordinal < len(loads):
                away, running, studies = loads[place.ordinal]
                loads[place.ordinal] = away, running + place.running, studies + 1
        return loads.index(min(loads))
