"""Simulated trainers, which repeat a request until it is answered, and a check of what they reported."""

from __future__ import annotations

import asyncio

import httpx
import optuna
from optuna.trial import TrialState
from tuning_operator.studies.auth.tokens import mint_pod
from tuning_operator.studies.storage import schema

from tests.api.operator_kit import SECRET, Pod

STEPS = 3
RETRY_SECONDS = 0.5


class Trainers:
    """The trainers of all pods."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.requests = self.retries = 0

    async def live(self, pod: Pod) -> None:
        await pod.runs()
        trial = await self._ask(pod, "GET", "")
        x = trial["trial"]["parameters"]["x"]
        for step in range(STEPS):
            await self._ask(pod, "POST", "/report", {"values": [[step, x + step]]})
        await self._ask(pod, "POST", "/result", {"state": "COMPLETE", "values": [x]})
        await pod.succeeds()

    async def _ask(self, pod: Pod, method: str, path: str, content: object = None) -> dict:
        environment = {e["name"]: e.get("value") for e in pod.body["spec"]["containers"][0]["env"]}
        headers = {"Authorization": f"Bearer {mint_pod(SECRET, pod.node.namespace, pod.name)}"}
        while True:
            self.requests += 1
            try:
                url = f"{environment['TUNING_TRIAL_URL']}{path}"
                reply = await self._http.request(method, url, json=content, headers=headers)
                if reply.status_code < 500:
                    reply.raise_for_status()
                    return reply.json()
            except httpx.TransportError:
                pass
            self.retries += 1
            await asyncio.sleep(RETRY_SECONDS)


def audit(url: str, study: str, trials: int) -> None:
    """Check the record: all trials are there once, each with what its trainer has reported."""
    engine = schema.database_url(url).render_as_string(hide_password=False)
    storage = optuna.storages.RDBStorage(engine, skip_table_creation=True)
    record = optuna.load_study(study_name=study, storage=storage).get_trials(deepcopy=False)
    assert [trial.number for trial in record] == list(range(trials))
    for trial in record:
        x = trial.params["x"]
        assert (trial.state, trial.values) == (TrialState.COMPLETE, [x]), trial
        assert trial.intermediate_values == {step: x + step for step in range(STEPS)}, trial
    storage.engine.dispose()
