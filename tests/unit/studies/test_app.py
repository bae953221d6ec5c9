"""The HTTP API of the study server: permissions, errors, and how values are sent."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tuning_operator.protocol import Changes, StudySummary, TrialRecord, TrialView
from tuning_operator.studies.auth.tokens import mint_operator, mint_pod, mint_reader
from tuning_operator.studies.http.replies import error_reply

from tests.support.study_server import NO_TLS, SECRET, RunningServer
from tests.support.study_server import server as server

if TYPE_CHECKING:
    from collections.abc import Iterator

STUDY = "/v1/studies/ml/mnist"
TRIAL = f"{STUDY}/trials/0"
REFIT = f"{STUDY}/refit"
REQUEST = {"trial": 1, "digest": "d"}
DEFINITION = {
    "objectives": [{"metric": "acc", "direction": "maximize"}],
    "searchSpace": [{"name": "x", "type": "float", "low": 0, "high": 1}],
}
ASK = {"parallelism": 2, "maxTrials": 10}
FLOAT = {"name": "FloatDistribution", "attributes": {"low": 0, "high": 1, "log": False, "step": None}}


@pytest.fixture
def operator(server: RunningServer) -> Iterator[httpx.Client]:
    """The operator; the study has two running trials."""
    client = server.operator()
    assert client.put(STUDY, json=DEFINITION | {"deletionPolicy": "Delete"}).status_code == 200
    assert client.post(f"{STUDY}/ask", json=ASK).status_code == 200
    yield client
    assert client.delete(STUDY).status_code == 204


def request(
    server: RunningServer, method: str, path: str, token: str | None, body: Any = None
) -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return httpx.request(method, server.url + path, headers=headers, json=body, verify=NO_TLS, timeout=120)


CALLS: dict[tuple[str, str], tuple[Any, set[str]]] = {
    ("GET", STUDY): (None, {"operator"}),
    ("PUT", STUDY): (DEFINITION | {"deletionPolicy": "Delete"}, {"operator"}),
    ("POST", f"{STUDY}/ask"): (ASK, {"operator"}),
    ("GET", "/v1/changes"): (None, {"operator"}),
    ("GET", "/v1/namespaces"): (None, {"operator"}),
    ("DELETE", "/v1/namespaces/ml?uid=former"): (None, {"operator"}),
    ("GET", TRIAL): (None, {"pod"}),
    ("POST", f"{TRIAL}/suggest"): ({"name": "x", "distribution": FLOAT}, {"pod"}),
    ("POST", f"{TRIAL}/report"): ({"values": [[0, 0.5]]}, {"pod"}),
    ("POST", f"{TRIAL}/attributes"): ({"userAttrs": {"a": 1}}, {"pod"}),
    ("POST", f"{TRIAL}/result"): ({"state": "FAIL"}, {"operator", "pod"}),
    ("GET", f"{STUDY}/record"): (None, {"operator", "reader"}),
    ("GET", "/v1/studies/ml"): (None, {"operator", "reader"}),
    ("PUT", REFIT): (REQUEST, {"operator"}),
    ("GET", REFIT): (None, {"refit"}),
    ("GET", f"{REFIT}/study"): (None, {"refit"}),
    ("POST", f"{REFIT}/suggest"): ({"name": "x", "distribution": FLOAT}, {"refit"}),
    ("POST", f"{REFIT}/report"): ({"values": [[0, 0.5]]}, {"refit"}),
    ("POST", f"{REFIT}/attributes"): ({"userAttrs": {"a": 1}}, {"refit"}),
    ("POST", f"{REFIT}/result"): ({"state": "FAIL"}, {"operator", "refit"}),
    ("POST", f"{STUDY}/workers/0/trials"): ({"timeout": 0}, {"worker"}),
    ("DELETE", STUDY): (None, {"operator"}),
}
CALLERS = {
    "nobody": None,
    "nonsense": "not a token",
    "forger": mint_operator("another secret of the same length!!!!!!"),
    "operator": mint_operator(SECRET),
    "pod": mint_pod(SECRET, "ml", "mnist-0-x7k2p"),
    "other trial": mint_pod(SECRET, "ml", "mnist-1-x7k2p"),
    "other study": mint_pod(SECRET, "ml", "mnist-0-0-x7k2p"),
    "other namespace": mint_pod(SECRET, "prod", "mnist-0-x7k2p"),
    "worker": mint_pod(SECRET, "ml", "mnist-w0-x7k2p"),
    "other worker": mint_pod(SECRET, "ml", "mnist-w1-x7k2p"),
    "other study's worker": mint_pod(SECRET, "ml", "mnist-0-w0-x7k2p"),
    "other namespace's worker": mint_pod(SECRET, "prod", "mnist-w0-x7k2p"),
    "refit": mint_pod(SECRET, "ml", "mnist-refit-x7k2p"),
    "other study's refit": mint_pod(SECRET, "ml", "mnist-0-refit-x7k2p"),
    "trial of a study named as the refit": mint_pod(SECRET, "ml", "mnist-refit-0-x7k2p"),
    "other namespace's refit": mint_pod(SECRET, "prod", "mnist-refit-x7k2p"),
    "reader": mint_reader(SECRET, "ml"),
    "other namespace's reader": mint_reader(SECRET, "prod"),
}


@pytest.mark.parametrize("caller", CALLERS)
@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_who_may_call_what(
    server: RunningServer, operator: httpx.Client, call: tuple[str, str], caller: str
) -> None:
    assert server.pod("ml", "mnist", 1).post("/result", json={"state": "COMPLETE", "values": [1]}).is_success
    assert operator.put(REFIT, json=REQUEST).is_success
    body, allowed = CALLS[call]
    reply = request(server, *call, CALLERS[caller], body)
    if caller in allowed:
        assert reply.is_success, reply.text
    elif caller in ("nobody", "nonsense", "forger"):
        assert reply.status_code == 401, reply.text
        assert reply.headers["WWW-Authenticate"] == "Bearer"
    else:
        assert reply.status_code == 403, reply.text


def test_a_worker_opens_the_trial_that_it_has_and_no_other(
    server: RunningServer, operator: httpx.Client
) -> None:
    pod = CALLERS["worker"]
    got = request(server, "POST", f"{STUDY}/workers/0/trials", pod, {"timeout": 0}).json()
    assert [view["trial"]["number"] for view in got["start"]] == [0]
    for call, (body, allowed) in CALLS.items():
        if "pod" in allowed:
            assert request(server, *call, pod, body).is_success
            other = call[0], call[1].replace("/trials/0", "/trials/1")
            assert request(server, *other, pod, body).status_code == 403
            assert request(server, *call, CALLERS["other worker"], body).status_code == 403


PODS = {"pod", "refit", "worker"}


@pytest.mark.parametrize("call", [call for call, (_, allowed) in CALLS.items() if allowed & PODS])
def test_a_pod_of_a_deleted_study_speaks_for_no_other(
    server: RunningServer, operator: httpx.Client, call: tuple[str, str]
) -> None:
    """A study of the same name was created while the pod was still running."""
    owner = "refit" if "refit" in call[1] else "w0" if "workers" in call[1] else 0
    old, new = (
        mint_pod(SECRET, "ml", f"mnist-{owner}-x7k2p", study_uid=uid) for uid in ("the first", "the second")
    )
    body, _ = CALLS[call]
    second = DEFINITION | {"uid": "the second", "deletionPolicy": "Delete"}
    assert operator.put(STUDY, json=second).is_success
    assert server.pod("ml", "mnist", 1).post("/result", json={"state": "COMPLETE", "values": [1]}).is_success
    assert operator.put(REFIT, json=REQUEST).is_success
    refused = request(server, *call, old, body)
    assert (refused.status_code, "another TuningStudy ml/mnist" in refused.text) == (403, True)
    assert request(server, *call, new, body).is_success


def test_no_study_is_named_to_those_who_may_not_read_it(
    server: RunningServer, operator: httpx.Client
) -> None:
    """/healthz, /readyz, /metrics and /openapi.json are for all who can connect."""
    others = (None, mint_reader(SECRET, "prod"), mint_pod(SECRET, "ml", "mnist-1-x7k2p"))
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        for token in others:
            reply = request(server, "GET", path, token)
            assert reply.is_success
            assert "mnist" not in reply.text
            assert '"ml"' not in reply.text
    assert 'tuning_trials{state="running"} ' in request(server, "GET", "/metrics", None).text
    assert request(server, "GET", "/metrics", CALLERS["forger"]).status_code == 401


def test_each_path_is_in_that_table(server: RunningServer) -> None:
    """For a new path, the table says who may call it."""
    paths = server_paths(server)
    shown = {
        (
            method,
            path.partition("?")[0]
            .replace("ml", "{namespace}")
            .replace("mnist", "{name}")
            .replace("/0", "/{number}"),
        )
        for method, path in CALLS
    }
    shown = {(method, path.replace("workers/{number}", "workers/{worker}")) for method, path in shown}
    open_to_all = {("GET", "/healthz"), ("GET", "/readyz"), ("GET", "/metrics")}
    assert paths == shown | open_to_all
    for method, path in open_to_all:
        assert request(server, method, path, None).status_code == 200


def server_paths(server: RunningServer) -> set[tuple[str, str]]:
    document = request(server, "GET", "/openapi.json", None).json()
    return {(method.upper(), path) for path, item in document["paths"].items() for method in item}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field", "message"),
    [
        ("GET", "/v1/studies/ml/unknown", None, 404, "study", "ml/unknown not found"),
        ("POST", "/v1/studies/ml/unknown/ask", ASK, 404, "study", "ml/unknown not found"),
        ("POST", f"{STUDY}/trials/77/result", {"state": "FAIL"}, 404, "trial", "has no trial 77"),
        ("POST", f"{STUDY}/trials/-1/result", {"state": "FAIL"}, 404, "trial", "has no trial -1"),
        ("POST", f"{STUDY}/trials/x/result", {"state": "FAIL"}, 422, "number", "valid integer"),
        (
            "POST",
            f"{STUDY}/ask",
            {"parallelism": -1, "maxTrials": 1},
            422,
            "parallelism",
            "greater than or equal",
        ),
        ("POST", f"{STUDY}/ask", {"parallelism": 1}, 422, "maxTrials", "Field required"),
        ("PUT", STUDY, {"objectives": [{"metric": "a"}]}, 422, "objectives[0].direction", "Field required"),
        ("PUT", STUDY, DEFINITION | {"searchspace": []}, 422, "searchspace", "Extra inputs"),
        (
            "PUT",
            STUDY,
            DEFINITION | {"sampler": {"name": "TPESampler", "args": {"sed": 1}}},
            422,
            "sampler",
            "sed",
        ),
        (
            "PUT",
            STUDY,
            {"objectives": [{"metric": "acc", "direction": "minimize"}]},
            409,
            "objectives",
            "directions maximize",
        ),
        ("GET", "/v1/changes?timeout=1e9", None, 422, "timeout", "less than or equal"),
    ],
)
def test_an_error_names_the_field_and_what_is_wrong(
    operator: httpx.Client, method: str, path: str, body: Any, status: int, field: str, message: str
) -> None:
    reply = operator.request(method, path, json=body)
    assert reply.status_code == status
    problem = reply.json()["problems"][0]
    assert problem["field"].startswith(field)
    assert message in problem["message"]
    assert problem["message"] in reply.json()["detail"]


def test_invalid_json(operator: httpx.Client) -> None:
    for content in (b"", b"{", b"[]", b"\xff"):
        reply = operator.post(f"{STUDY}/ask", content=content)
        assert (reply.status_code, bool(reply.json()["problems"])) == (422, True)


def test_replies_are_the_protocols(server: RunningServer, operator: httpx.Client) -> None:
    summary = StudySummary.model_validate_json(operator.get(STUDY).content)
    assert [trial.number for trial in summary.running] == [0, 1]
    pod = server.pod("ml", "mnist", 0)
    view = TrialView.model_validate_json(pod.get(f"{server.url}{TRIAL}").content)
    assert view.fixed
    assert view.distributions["x"]["name"] == "FloatDistribution"
    ended = pod.post("/result", json={"state": "COMPLETE", "values": [0.5]})
    record = TrialRecord.model_validate_json(ended.content)
    assert record.started
    assert record.finished
    assert record.started <= record.finished
    assert record.started.tzinfo is not None
    Changes.model_validate_json(operator.get("/v1/changes").content)


def test_numbers_that_json_lacks_are_sent_as_strings(server: RunningServer, operator: httpx.Client) -> None:
    pod = server.pod("ml", "mnist", 0)
    values = [[0, "NaN"], [1, "Infinity"], [2, "-Infinity"], [3, 0.5]]
    assert pod.post("/report", json={"values": values}).json()["prune"] is False
    reported = json.loads(pod.get(f"{server.url}{TRIAL}").content, parse_constant=pytest.fail)["reported"]
    assert reported == {"0": "NaN", "1": "Infinity", "2": "-Infinity", "3": 0.5}
    ended = pod.post("/result", json={"state": "COMPLETE", "values": ["Infinity"]}).json()
    assert (ended["state"], ended["values"]) == ("COMPLETE", ["Infinity"])
    assert operator.get(STUDY).json()["best"]["values"] == ["Infinity"]


@pytest.mark.parametrize("values", [[], [[0]], [[0.5, 1]], [["a", 1]], [[0, None]], [[0, "high"]], None])
def test_invalid_reports(server: RunningServer, operator: httpx.Client, values: Any) -> None:
    reply = server.pod("ml", "mnist", 0).post("/report", json={"values": values})
    assert reply.status_code == 422, reply.text
    assert reply.json()["problems"][0]["field"].startswith("values")


def test_a_report_through_fastapi_is_the_same(server: RunningServer, operator: httpx.Client) -> None:
    """A number written with ten digits is left to FastAPI's route, which the OpenAPI document describes."""
    pod = server.pod("ml", "mnist", 0)
    routed = f"{server.url}{STUDY}/trials/{0:010}/report"

    def reports() -> str:
        lines = operator.get("/metrics").text.splitlines()
        return next(line for line in lines if line.startswith("tuning_report_seconds_count"))

    before = reports()
    for body in ({"values": [[0, 0.5]]}, {"values": [[1, "NaN"]]}, {"values": [[0]]}, {}):
        fast, through_fastapi = pod.post("/report", json=body), pod.post(routed, json=body)
        assert (fast.status_code, fast.json()) == (through_fastapi.status_code, through_fastapi.json())
    assert float(reports().split()[1]) == float(before.split()[1]) + 4
    assert request(server, "POST", routed.removeprefix(server.url), CALLERS["reader"], {}).status_code == 403
    document = operator.get("/openapi.json").json()["paths"]
    described = document["/v1/studies/{namespace}/{name}/trials/{number}/report"]["post"]
    schema = described["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/ReportRequest"}


@pytest.mark.parametrize("choice", [None, "a", 1, 1.5, True, float("inf"), float("nan"), [1, "b"]])
def test_a_choice_is_sent_unchanged(server: RunningServer, choice: Any) -> None:
    operator = server.operator()
    operator.put(
        "/v1/studies/ml/choices", json={"objectives": DEFINITION["objectives"], "deletionPolicy": "Delete"}
    )
    operator.post("/v1/studies/ml/choices/ask", json=ASK)
    body = {
        "name": "c",
        "distribution": {"name": "CategoricalDistribution", "attributes": {"choices": [choice]}},
    }
    reply = server.pod("ml", "choices", 0).post(
        "/suggest", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    spelled = {"inf": "Infinity", "nan": "NaN"}.get(str(choice), choice)
    assert reply.json() == {"value": spelled}
    assert type(reply.json()["value"]) is type(spelled)
    assert operator.delete("/v1/studies/ml/choices").status_code == 204


def test_null_is_a_choice_like_others(server: RunningServer) -> None:
    path = "/v1/studies/ml/nulls"
    strength = {"name": "strength", "type": "float", "low": 0, "high": 1}
    weight = {"name": "weight", "type": "categorical", "choices": [None, "balanced"]}
    definition = {
        "objectives": DEFINITION["objectives"],
        "searchSpace": [
            weight,
            strength | {"when": {"parameter": "weight", "equals": None}},
            strength | {"name": "bias", "when": {"parameter": "weight", "anyOf": ["balanced"]}},
        ],
        "initialTrials": [{"weight": None, "strength": 0.5}, {"weight": "balanced"}],
        "deletionPolicy": "Delete",
    }
    operator = server.operator()
    for _ in range(2):  # the same definition again is no change
        assert operator.put(path, json=definition).status_code == 200
    running = operator.post(f"{path}/ask", json=ASK).json()["running"]
    assert running[0]["parameters"] == {"weight": None, "strength": 0.5}
    assert running[1]["parameters"].keys() == {"weight", "bias"}
    assert server.pod("ml", "nulls", 0).post("/result", json={"state": "COMPLETE", "values": [1]}).is_success
    assert operator.get(path).json()["best"]["parameters"] == {"weight": None, "strength": 0.5}
    changed = definition | {"searchSpace": [weight | {"choices": [None, "other"]}], "initialTrials": []}
    refused = operator.put(path, json=changed)
    assert refused.status_code == 409
    assert "weight" in refused.json()["detail"]
    assert operator.delete(path).status_code == 204


def test_a_change_ends_a_long_poll(server: RunningServer, operator: httpx.Client) -> None:
    cursor = operator.get("/v1/changes").json()["cursor"]
    found: list[Any] = []
    follower = server.operator()
    waits = threading.Thread(
        target=lambda: found.append(
            follower.get("/v1/changes", params={"after": cursor, "timeout": 60}).json()
        )
    )
    waits.start()
    server.pod("ml", "mnist", 1).post("/result", json={"state": "PRUNED"})
    waits.join(50)
    assert found, "it ends before its timeout"
    assert found[0]["studies"] == [["ml", "mnist"]]


def test_metrics(server: RunningServer, operator: httpx.Client) -> None:
    server.pod("ml", "mnist", 0).post("/report", json={"values": [[0, 0.5]]})
    metrics = operator.get("/metrics").text
    of_study = 'tuning_trials{namespace="ml",state="running",study="mnist"} 2.0'
    assert of_study in metrics
    assert of_study in server.reader("ml").get("/metrics").text
    for call in ("ask", "report", "tell"):
        assert f"tuning_{call}_seconds_count" in metrics


def test_a_fault_of_the_server_itself_is_a_500() -> None:
    """Which clients try again later, unlike what is wrong with their request."""
    reply = error_reply(RuntimeError("a secret of the server's"))
    assert reply.status_code == 500
    assert b"internal error (RuntimeError)" in reply.body
    assert b"secret" not in reply.body
