"""The running trials of a local study with what they have reported, for a view of them."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from typing import Any

import aiohttp

from tuning_operator.kube.plan.work import Trial
from tuning_operator.local.server import LocalServer
from tuning_operator.protocol import StudyKey, StudySummary, TrialView

REQUEST_SECONDS = 10.0


@dataclass(frozen=True)
class RunningTrial:
    """A trial that runs."""

    number: int
    parameters: dict[str, Any]
    started: datetime | None
    step: int | None
    """The last step that it has reported."""
    value: float | None


async def running_trials(server: LocalServer, key: StudyKey) -> list[RunningTrial]:
    """Return the running trials; none while the study server does not know the study."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    url = f"{server.url}/v1/studies/{key.namespace}/{key.name}"
    async with aiohttp.ClientSession(timeout=timeout) as http:
        content = await _get(http, url, server.operator_token())
        if content is None:
            return []
        summary = StudySummary.model_validate_json(content)
        views = (_view(http, url, server, key, trial.number) for trial in summary.running)
        return [trial for trial in await asyncio.gather(*views) if trial]


async def _view(
    http: aiohttp.ClientSession, url: str, server: LocalServer, key: StudyKey, number: int
) -> RunningTrial | None:
    work = Trial(number)
    content = await _get(http, f"{url}/{work.path}", server.run_token(work.job_name(key.name)))
    if content is None:
        return None
    view = TrialView.model_validate_json(content)
    step = max(view.reported, default=None)
    value = None if step is None else view.reported[step]
    return RunningTrial(number, view.trial.parameters, view.trial.started, step, value)


async def _get(http: aiohttp.ClientSession, url: str, token: str) -> bytes | None:
    async with http.get(url, headers={"Authorization": f"Bearer {token}"}) as reply:
        return await reply.read() if reply.status == HTTPStatus.OK else None
