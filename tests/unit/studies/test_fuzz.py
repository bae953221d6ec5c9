"""Requests made from the OpenAPI document, valid and invalid ones: none makes the server fail.

Each operation of the document also succeeds, so that it is not only its authorization that is tried.

`TUNING_FUZZ_EXAMPLES=2000 pytest tests/unit/studies/test_fuzz.py` tries 2,000 of each kind.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from tuning_operator.studies.auth.tokens import LOCAL_OPERATOR, LocalKeys, Verifier
from tuning_operator.studies.http.app import create_app
from tuning_operator.studies.http.replies import ErrorReply
from tuning_operator.studies.service import Service
from tuning_operator.studies.storage.base import MemoryStore

from tests.support.study_server import SECRET, RunningServer
from tests.support.study_server import server as server

STUDY = "/v1/studies/ml/mnist"
DEFINITION = {"objectives": [{"metric": "acc", "direction": "maximize"}]}
EXAMPLES = int(os.environ.get("TUNING_FUZZ_EXAMPLES", "15"))
DOCUMENT = create_app(Service(MemoryStore(), Verifier(LocalKeys(SECRET), LOCAL_OPERATOR))).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)
COMPLETE = {"state": "COMPLETE", "values": [0.5]}
REFIT = {"trial": 0, "digest": "d"}
FLOAT = {"name": "FloatDistribution", "attributes": {"low": 0, "high": 1, "log": False, "step": None}}
BODIES = {
    "": DEFINITION,
    "ask": {"parallelism": 2, "maxTrials": 1000},
    "attributes": {"userAttrs": {"note": 1}},
    "refit": REFIT,
    "report": {"values": [[0, 0.5]]},
    "result": COMPLETE,
    "suggest": {"name": "x", "distribution": FLOAT},
    "trials": {"running": [], "timeout": 0},
}
"""Valid bodies by the last part of the operation's path below the study."""


@dataclass
class Operation:
    """What became of the requests of one operation."""

    server: RunningServer
    known: dict[str, object] = field(default_factory=dict)
    """Parameters of paths that exist; the trial is running."""
    replies: list[int] = field(default_factory=list)

    def prepare(self) -> None:
        """Have a study with a complete trial, running ones and a refit."""
        operator = self.server.operator()
        operator.put(STUDY, json=DEFINITION)
        operator.post(f"{STUDY}/ask", json=BODIES["ask"])
        self.server.pod("ml", "mnist", 0).post("/suggest", json=BODIES["suggest"])
        operator.post(f"{STUDY}/trials/0/result", json=COMPLETE)
        operator.put(f"{STUDY}/refit", json=REFIT)
        running = operator.post(f"{STUDY}/ask", json=BODIES["ask"]).json()["running"]
        self.known = {"namespace": "ml", "name": "mnist", "number": running[0]["number"], "worker": 0}

    def token(self, method: str, path: str) -> str:
        """Return the token of a caller that the operation admits."""
        path = path if method == "PUT" else f"{path}/"
        for part, owner in (("/workers/", "w0"), ("/refit/", "refit"), ("/trials/", self.known["number"])):
            if part in path:
                return self.server.pod_token("ml", "mnist", owner)
        return self.server.operator_token()


@pytest.fixture
def operation(server: RunningServer) -> Iterator[Operation]:
    operation = Operation(server)
    operation.prepare()
    yield operation
    assert {200, 204} & set(operation.replies), Counter(operation.replies)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_the_server_fail(case: schemathesis.Case, operation: Operation) -> None:
    path, count = case.operation.path, len(operation.replies)
    if path == "/v1/studies/{namespace}/{name}" and case.method != "GET":
        operation.prepare()  # an earlier request may have deleted or changed the study
    if count % 3 != 2:  # two thirds go to a study that exists
        case.path_parameters = {name: operation.known[name] for name in case.path_parameters}
        if not count:
            case.query = {name: "value" for name in case.query or () if name == "uid"}
            case.body = BODIES.get(path.rpartition("/")[2].strip("{name}"), case.body)
    if path == "/v1/changes":
        case.query = {**(case.query or {}), "timeout": 0}
    if "/workers/" in path and isinstance(case.body, dict) and "timeout" in case.body:
        case.body = {**case.body, "timeout": 0}
    case.headers = {"Authorization": f"Bearer {operation.token(case.method, path)}"}
    response = case.call(operation.server.url)
    operation.replies.append(response.status_code)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert ErrorReply.model_validate_json(response.content).problems
