"""A trial that uses plain HTTP calls, for objectives that also run with Optuna's trial."""

from __future__ import annotations

import json
import math
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import httpx

    from tests.support.study_server import RunningServer


class HttpTrial:
    """The part of optuna.Trial that the tests' objectives use.

    It makes hundreds of requests, which take httpx three times as long as the standard library.
    """

    def __init__(self, http: httpx.Client) -> None:
        self._path = http.base_url.path.rstrip("/")
        self._connection = HTTPConnection(http.base_url.host, http.base_url.port)
        self._headers = {"Authorization": http.headers["Authorization"], "Content-Type": "application/json"}
        self.view = self.post("GET", "")
        self.number: int = self.view["trial"]["number"]
        self.params: dict[str, Any] = dict(self.view["trial"]["parameters"])
        self._prune = False

    def post(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, self._path + path, content, self._headers)
        response = self._connection.getresponse()
        text = response.read()
        assert response.status == 200, text
        return json.loads(text)

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        return self._suggest(name, FloatDistribution(low, high, log=log, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        return self._suggest(name, IntDistribution(low, high, log=log, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._suggest(name, CategoricalDistribution(choices))

    def _suggest(self, name: str, distribution: BaseDistribution) -> Any:
        if name not in self.params:
            body = {"name": name, "distribution": json.loads(distribution_to_json(distribution))}
            self.params[name] = self.post("POST", "/suggest", body)["value"]
        return self.params[name]

    def report(self, value: float, step: int) -> None:
        self._prune = self.post("POST", "/report", {"values": [[step, wire(value)]]})["prune"]

    def should_prune(self) -> bool:
        return self._prune

    def set_constraint(self, key: str, value: float) -> None:
        self.post("POST", "/attributes", {"constraints": {key: value}})

    def set_user_attr(self, key: str, value: Any) -> None:
        self.post("POST", "/attributes", {"userAttrs": {key: value}})


def run_trial(server: RunningServer, study: str, number: int, objective: Callable[[Any], Any]) -> Any:
    """Run a trial's objective as its pod does; return the resulting TrialRecord."""
    namespace, name = study.split("/")
    trial = HttpTrial(server.pod(namespace, name, number))
    try:
        returned = objective(trial)
    except optuna.TrialPruned:
        return trial.post("POST", "/result", {"state": "PRUNED"})
    except RuntimeError as error:
        failure = {"category": "Exception", "message": str(error)}
        return trial.post("POST", "/result", {"state": "FAIL", "failure": failure})
    values = [*returned] if isinstance(returned, (list, tuple)) else [returned]
    result = {"state": "COMPLETE", "values": [wire(value) for value in values]}
    return trial.post("POST", "/result", result)


def run_study(
    server: RunningServer,
    study: str,
    definition: dict[str, Any],
    objective: Callable[[Any], Any],
    trials: int,
) -> dict[str, Any]:
    """Declare a study and run its trials one after another; return its last summary."""
    operator = server.operator()
    path = f"/v1/studies/{study}"
    declared = operator.put(path, json=definition)
    assert declared.status_code == 200, declared.text
    while True:
        asked = operator.post(f"{path}/ask", json={"parallelism": 1, "maxTrials": trials})
        assert asked.status_code == 200, asked.text
        if not asked.json()["running"]:
            return asked.json()
        run_trial(server, study, asked.json()["running"][0]["number"], objective)


def wire(value: float) -> float | str:
    """Return a number in the protocol's encoding."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
