"""The route of workers: pods that take one trial after another."""

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from tuning_operator.protocol import WorkReply, WorkRequest
from tuning_operator.studies.http.dependencies import STUDY, Served, Study, worker_pod
from tuning_operator.studies.http.replies import reply

workers = APIRouter(prefix=f"{STUDY}/workers/{{worker}}")


@workers.post("/trials", response_model=WorkReply)
async def trials(
    service: Served,
    key: Study,
    request: WorkRequest,
    pod: Annotated[str, Depends(worker_pod)],
    connection: Request,
) -> Response:
    """Return trials to start and trials that have ended; wait until there are any."""
    engine = await service.studies.find(key)
    return await _while_connected(connection, engine.work(pod, request))


async def _while_connected(connection: Request, work: Coroutine[Any, Any, WorkReply]) -> Response:
    """Return the reply; once the client has gone, it is not to be given a trial any more."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(connection))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        return reply(working.result()) if working.done() else Response()  # which nobody receives
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(connection: Request) -> None:
    """Return when the client has gone. The body has been read."""
    while (await connection.receive())["type"] != "http.disconnect":
        pass
