"""A database that was replaced or restored while the server was away, too: pods run trials that it has lost.

Other trials get their numbers; nothing that the pods still send may become part of those.
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from tuning_operator.studies.storage.store import PostgresStore

from tests.support.study_server import NO_TLS, RunningServer, running_server
from tests.support.study_server import study_server as study_server

STUDY = "/v1/studies/ml/mnist"
TRIAL = f"{STUDY}/trials/0"
DEFINITION = {
    "objectives": [{"metric": "acc", "direction": "maximize"}],
    "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
    "deletionPolicy": "Delete",
}
STARTED = "Tuning-Trial-Started"
FLOAT = {"name": "FloatDistribution", "attributes": {"low": 0, "high": 1, "log": False, "step": None}}
REQUESTS: dict[str, tuple[str, Any]] = {
    "": ("GET", None),
    "/report": ("POST", {"values": [[0, 0.9]]}),
    "/suggest": ("POST", {"name": "x", "distribution": FLOAT}),
    "/attributes": ("POST", {"userAttrs": {"a": 1}}),
    "/result": ("POST", {"state": "COMPLETE", "values": [0.9]}),
}


def begin(server: RunningServer) -> dict[str, Any]:
    """Return the view of trial 0, which has just started."""
    server.operator().put(STUDY, json=DEFINITION).raise_for_status()
    server.operator().post(f"{STUDY}/ask", json={"parallelism": 1, "maxTrials": 1}).raise_for_status()
    view: dict[str, Any] = sent(server, "GET", "").json()
    return view


def sent(
    server: RunningServer, method: str, path: str, body: Any = None, started: str | None = None
) -> httpx.Response:
    """Return the reply to the trial's pod."""
    headers = {"Authorization": f"Bearer {server.pod_token('ml', 'mnist', 0)}"}
    headers |= {STARTED: started} if started else {}
    return httpx.request(
        method, f"{server.url}{TRIAL}{path}", headers=headers, json=body, verify=NO_TLS, timeout=120
    )


def test_a_pod_of_a_lost_trial_changes_nothing(study_server: RunningServer) -> None:
    lost = begin(study_server)["trial"]["started"]
    study_server.operator().delete(STUDY).raise_for_status()
    there = begin(study_server)
    for path, (method, body) in REQUESTS.items():
        reply = sent(study_server, method, path, body, lost)
        assert reply.status_code == 409, path
        assert "the database has lost trial 0 of this pod" in reply.json()["detail"]
    assert sent(study_server, "GET", "").json() == there
    for path, (method, body) in REQUESTS.items():
        reply = sent(study_server, method, path, body, there["trial"]["started"])
        assert reply.status_code == 200, reply.text


@pytest.mark.parametrize("path", REQUESTS)
def test_a_time_that_is_none(study_server: RunningServer, path: str) -> None:
    begin(study_server)
    method, body = REQUESTS[path]
    reply = sent(study_server, method, path, body, "yesterday")
    assert reply.status_code == 422
    assert STARTED.lower() in reply.json()["problems"][0]["field"].lower()


def test_a_trial_stays_the_same_when_the_server_restarts(database_url: str) -> None:
    with running_server(PostgresStore(database_url)) as first:
        started = begin(first)["trial"]["started"]
    with running_server(PostgresStore(database_url)) as second:
        for path, (method, body) in REQUESTS.items():
            reply = sent(second, method, path, body, started)
            assert reply.status_code == 200, reply.text
