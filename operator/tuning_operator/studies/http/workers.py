"""The route of workers: pods that take one trial after another."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from tuning_operator.protocol import WorkReply, WorkRequest
from tuning_operator.studies.http.dependencies import STUDY, Served, Study, worker_pod
from tuning_operator.studies.http.replies import reply

workers = APIRouter(prefix=f"{STUDY}/workers/{{worker}}")


@workers.post("/trials", response_model=WorkReply)
async def trials(
    service: Served, key: Study, request: WorkRequest, pod: Annotated[str, Depends(worker_pod)]
) -> Response:
    """Return trials to start and trials that have ended; wait until there are any."""
    return reply(await (await service.studies.find(key)).work(pod, request))
