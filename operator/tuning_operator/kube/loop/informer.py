"""kopf as an informer that requests nothing but our objects: its settings, and its session."""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import aiohttp
import kopf

WATCH_SECONDS = 1.0
"""The shortest time between two watches: kopf does not wait before it repeats one that has ended."""
FIRST_BACKOFFS = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0)
LAST_BACKOFF = 15.0
"""Seconds: a study that is applied after an outage of the API server is noticed this much later at most."""


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings: an informer that requests nothing but our objects from the API server."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True  # no watching of CRDs and namespaces, which would need more rights
    settings.posting.enabled = False
    settings.persistence.diffbase_storage = NoDiffs()
    settings.networking.error_backoffs = Backoffs()
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.watching.connect_timeout = 10
    settings.watching.chunk_size = 500
    return settings


class Backoffs:
    """The delays between kopf's attempts at a request: it never gives up.

    Otherwise, kopf would end, and the operator with it, when one of several namespaces was deleted or its
    Role removed. The studies of the others go on, and those of this one once it may be read again.
    """

    def __iter__(self) -> Iterator[float]:
        """Begin with kopf's own delays."""
        return itertools.chain(FIRST_BACKOFFS, itertools.repeat(LAST_BACKOFF))


class NoDiffs(kopf.DiffBaseStorage):
    """Keeps kopf from copying and comparing every object at each event, for handlers that don't exist here.

    That took more time than the operator's own work.
    """

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:  # noqa: ARG002
        """Return nothing to compare."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> None:
        """Return nothing to compare with."""

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Leave the object as it is."""


def session(info: kopf.ConnectionInfo) -> kopf.AiohttpSession:
    """Return the session that kopf would make, except that watches are some time apart."""
    next_at: dict[str, float] = {}

    async def pace(_session: object, _context: object, request: aiohttp.TraceRequestStartParams) -> None:
        if "watch" in request.url.query:
            now, path = asyncio.get_running_loop().time(), request.url.path
            wait = max(next_at.get(path, now) - now, 0)
            next_at[path] = now + wait + WATCH_SECONDS
            await asyncio.sleep(wait)

    trace = aiohttp.TraceConfig()
    trace.on_request_start.append(pace)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        trust_env=info.trust_env,
        trace_configs=[trace],
    )
    return kopf.AiohttpSession(server=info.server, aiohttp_session=session)
