"""Requests made from the OpenAPI document, valid and invalid ones: none makes the server fail.

`TUNING_FUZZ_EXAMPLES=2000 pytest tests/unit/studies/test_fuzz.py` tries 2,000 of each kind.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from tuning_operator.studies.auth.tokens import LOCAL_OPERATOR, LocalKeys, Verifier
from tuning_operator.studies.http.app import create_app
from tuning_operator.studies.http.replies import ErrorReply
from tuning_operator.studies.service import Service
from tuning_operator.studies.storage.base import MemoryStore

from tests.support.study_server import SECRET, RunningServer, running_server

STUDY = "/v1/studies/ml/mnist"
DEFINITION = {"objectives": [{"metric": "acc", "direction": "maximize"}]}
EXAMPLES = int(os.environ.get("TUNING_FUZZ_EXAMPLES", "15"))
DOCUMENT = create_app(Service(MemoryStore(), Verifier(LocalKeys(SECRET), LOCAL_OPERATOR))).openapi()
schema = schemathesis.openapi.from_dict(DOCUMENT)
KNOWN = {"namespace": "ml", "name": "mnist", "number": 0, "worker": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server() as server:
        yield server


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 100,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_makes_the_server_fail(case: schemathesis.Case, server: RunningServer) -> None:
    operator = server.operator()
    operator.put(STUDY, json=DEFINITION)
    operator.post(f"{STUDY}/ask", json={"parallelism": 2, "maxTrials": 1000})
    if case.path_parameters and len(str(case.body)) % 3:  # two thirds go to a study that exists
        case.path_parameters = {name: KNOWN[name] for name in case.path_parameters}
    if case.operation.path == "/v1/changes":
        case.query = {**(case.query or {}), "timeout": 0}
    if "/workers/" in case.operation.path and isinstance(case.body, dict) and "timeout" in case.body:
        case.body = {**case.body, "timeout": 0}
    of_pod = "/trials/" in case.operation.path or "/refit/" in case.operation.path
    owner = "w0" if "/workers/" in case.operation.path else 0
    token = server.pod_token("ml", "mnist", owner) if of_pod else server.operator_token()
    case.headers = {"Authorization": f"Bearer {token}"}
    response = case.call(server.url)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert ErrorReply.model_validate_json(response.content).problems
