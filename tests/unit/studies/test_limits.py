"""Requests that are too large, too slow or too deep are refused before they cost anything."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import tracemalloc
from typing import Any

import httpx
import pytest
from tuning_operator.studies.http import gate

from tests.support.study_server import NO_TLS, RunningServer
from tests.support.study_server import server as server

STUDY = "/v1/studies/ml/mnist"
X = {"name": "x", "type": "float", "low": 0, "high": 1}
DEFINITION = {"objectives": [{"metric": "acc", "direction": "maximize"}], "searchSpace": [X]}


def pod_of(server: RunningServer, name: str, definition: dict[str, Any] | None = None) -> httpx.Client:
    """Declare a study and start a trial of it; return the client of the trial's pod."""
    path = f"/v1/studies/ml/{name}"
    assert server.operator().put(path, json=definition or DEFINITION).status_code == 200
    assert server.operator().post(f"{path}/ask", json={"parallelism": 1, "maxTrials": 1}).status_code == 200
    return server.pod("ml", name, 0)


@pytest.mark.parametrize("framed", ["content-length", "chunked"])
def test_a_large_body_without_a_token_is_not_read(server: RunningServer, framed: str) -> None:
    piece = b" " * 65_536
    body = (piece for _ in range(64 * 16))
    headers = {"Content-Length": str(64 * 16 * len(piece))} if framed == "content-length" else {}
    tracemalloc.start()
    try:
        reply = httpx.post(
            f"{server.url}{STUDY}/ask", content=body, headers=headers, verify=NO_TLS, timeout=120
        )
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reply.status_code == 401
    assert peak < 8 * 2**20


@pytest.mark.parametrize("framed", ["content-length", "chunked"])
def test_a_large_body_is_refused_with_the_limit(server: RunningServer, framed: str) -> None:
    pod = pod_of(server, "large")
    body = json.dumps({"userAttrs": {"a": "x" * 2**20}}).encode()
    content: Any = body if framed == "content-length" else iter([body])
    reply = pod.post("/attributes", content=content)
    assert (reply.status_code, "larger than 1024 KiB" in reply.text) == (413, True)
    assert pod.post("/report", json={"values": [[0, 0.5]]}).status_code == 200


def test_a_deep_body_is_refused(server: RunningServer) -> None:
    pod = pod_of(server, "deep")
    for path in ("/attributes", "/report"):
        reply = pod.post(path, content=b'{"userAttrs":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}")
        assert (reply.status_code, "recursion limit" in reply.text) == (422, True)


def raw(server: RunningServer, *parts: bytes) -> bytes:
    """Send bytes; return what comes back until the server closes the connection."""
    with socket.create_connection(
        ("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=120
    ) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        while piece := connection.recv(65_536):
            found += piece
        return found


@pytest.mark.parametrize(
    "headers",
    [b"".join(b"X-%d: 1\r\n" % number for number in range(100)), b"X: " + b"x" * gate.HEADER_BYTES],
    ids=["many", "long"],
)
def test_too_many_and_too_large_headers_are_refused(server: RunningServer, headers: bytes) -> None:
    assert raw(server, b"GET /healthz HTTP/1.1\r\nHost: x\r\n", headers).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\n"])
def test_a_request_that_is_never_sent_is_not_waited_for(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(gate, "HEADER_SECONDS", 0.2)
    assert raw(server, begun) == b""


def head_of_a_report(server: RunningServer) -> bytes:
    """Return the head of a pod's request whose body has 100 bytes."""
    pod = pod_of(server, "slow")
    request = pod.build_request("POST", "/report", content=b" " * 100)
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {request.url.raw_path.decode()} HTTP/1.1\r\n{headers}\r\n".encode()


def test_a_body_that_does_not_arrive_is_given_up(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = head_of_a_report(server)
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.1)
    assert raw(server, head, b" {").startswith(b"HTTP/1.1 408 ")


def test_bodies_that_do_not_arrive_hold_nobody_up(server: RunningServer) -> None:
    head = head_of_a_report(server)
    with contextlib.ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))))
            for _ in range(50)
        ]
        for connection in connections:
            connection.sendall(head + b" {")
        reply = pod_of(server, "slow").post("/report", json={"values": [[0, 0.5]]})
        assert reply.status_code == 200
        assert select.select(connections, [], [], 0)[0] == [], "the server still waits for all bodies"


def test_rejected_requests_are_counted(server: RunningServer) -> None:
    def count(status: int) -> float:
        lines = httpx.get(f"{server.url}/metrics", verify=NO_TLS, timeout=120).text.splitlines()
        prefix = f'tuning_rejected_requests_total{{status="{status}"}}'
        return sum(float(line.split()[1]) for line in lines if line.startswith(prefix))

    pod = pod_of(server, "counted")
    before = {status: count(status) for status in (401, 403)}
    assert httpx.get(f"{server.url}{STUDY}", verify=NO_TLS, timeout=120).status_code == 401
    assert pod.get(f"{server.url}/v1/studies/ml/counted/trials/1").status_code == 403
    assert pod.post(f"{server.url}/v1/studies/ml/counted/trials/1/report", json={}).status_code == 403
    assert {status: count(status) - before[status] for status in before} == {401: 1, 403: 2}


STEP = {"values": [[0, 0.5], [2**31, 0.5]]}
LONG = "k" * 513
FLOAT = {"name": "FloatDistribution", "attributes": {"low": 0, "high": 1, "log": False, "step": None}}
INT = {"name": "IntDistribution", "attributes": {"low": 0, "high": 10**400, "log": False, "step": 1}}
WIDE = {"name": "FloatDistribution", "attributes": {"low": -1e308, "high": 1e308, "log": False, "step": None}}
MANY = {"name": "CategoricalDistribution", "attributes": {"choices": list(range(1001))}}


@pytest.mark.parametrize(
    ("path", "body", "field", "message"),
    [
        (
            "/report",
            STEP,
            "values",
            "The step 2147483648 is too large: Optuna's tables take up to 2147483647.",
        ),
        ("/report", {"values": [[10**30, 0.5]]}, "values", "is too large"),
        ("/report", {"values": [[0, 0.5]] * 1001}, "values", "at most 1000 items"),
        ("/attributes", {"userAttrs": {LONG: 1}}, "userAttrs.kkk", "has 513 characters"),
        ("/attributes", {"studyAttrs": {LONG: 1}}, "studyAttrs.kkk", "has 513 characters"),
        ("/attributes", {"constraints": {LONG[:501]: 1}}, "constraints.kkk", "has 501 characters"),
        ("/attributes", {"userAttrs": {"a\0b": 1}}, "userAttrs.a\0b", "has a NUL character"),
        ("/attributes", {"userAttrs": {"a": "x" * 300_000}}, "userAttrs.a", "the limit is 262,144"),
        ("/suggest", {"name": LONG, "distribution": FLOAT}, "name", "has 513 characters"),
        ("/suggest", {"name": "y\0", "distribution": FLOAT}, "name", "has a NUL character"),
        ("/suggest", {"name": "y", "distribution": INT}, "distribution", "too large to convert"),
        ("/suggest", {"name": "y", "distribution": WIDE}, "distribution", "wider than the largest float"),
        ("/suggest", {"name": "y", "distribution": MANY}, "distribution", "at most 1,000 choices"),
    ],
)
def test_what_no_row_can_hold_is_refused_and_the_trial_goes_on(
    server: RunningServer, path: str, body: Any, field: str, message: str
) -> None:
    define_by_run = {name: value for name, value in DEFINITION.items() if name != "searchSpace"}
    name = f"rows-{abs(hash((path, str(body))))}"
    pod = pod_of(server, name, define_by_run)
    pod.post("/attributes", json={"userAttrs": {"before": "x" * 1000}})
    refused = pod.post(path, json=body)
    assert refused.status_code == 422, refused.text
    [problem] = refused.json()["problems"]
    assert problem["field"].startswith(field)
    assert message in problem["message"]
    assert pod.post("/report", json={"values": [[2**31 - 1, 0.5]]}).status_code == 200
    assert pod.post("/attributes", json={"userAttrs": {"k" * 512: "\0"}}).status_code == 200
    assert pod.post("/suggest", json={"name": "y", "distribution": FLOAT}).status_code == 200
    assert pod.post("/result", json={"state": "COMPLETE", "values": [1]}).json()["state"] == "COMPLETE"
    assert server.operator().get(f"/v1/studies/ml/{name}/record").status_code == 200


def test_the_texts_of_a_failure_are_shortened(server: RunningServer) -> None:
    pod = pod_of(server, "failing")
    texts = {"category": "c", "message": "m", "remedy": "r", "traceback": "t"}
    failure = {name: letter * 200_000 for name, letter in texts.items()}
    kept = pod.post("/result", json={"state": "FAIL", "failure": failure}).json()["failure"]
    assert {name: len(text) for name, text in kept.items()} == {
        "category": 100,
        "message": 4_000,
        "remedy": 4_000,
        "traceback": 32_000,
    }
    assert len(server.operator().get("/v1/studies/ml/failing").content) < 20_000


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (
            {"name": "TPESampler", "args": {"n_ei_candidates": 10**9}},
            "must be 1,000 or less, not 1,000,000,000",
        ),
        ({"name": "NSGAIISampler", "args": {"population_size": 10**9}}, "must be 10,000 or less"),
        ({"name": "CmaEsSampler", "args": {"popsize": 10**9}}, "must be 10,000 or less"),
        ({"name": "NSGAIIISampler", "args": {"dividing_parameter": 10**9}}, "the limit is 10,000"),
    ],
)
def test_arguments_that_would_take_the_server_down(
    server: RunningServer, sampler: dict[str, Any], message: str
) -> None:
    objectives = DEFINITION["objectives"] * (2 if sampler["name"].startswith("NSGAIII") else 1)
    refused = server.operator().put(
        "/v1/studies/ml/greedy", json=DEFINITION | {"objectives": objectives, "sampler": sampler}
    )
    assert (refused.status_code, message in refused.text) == (422, True), refused.text


def test_a_pruner_that_would_take_the_server_down(server: RunningServer) -> None:
    pruner = {"name": "SuccessiveHalvingPruner", "args": {"min_early_stopping_rate": 10**9}}
    refused = server.operator().put("/v1/studies/ml/greedy", json=DEFINITION | {"pruner": pruner})
    assert (refused.status_code, "must be 64 or less" in refused.text) == (422, True)


def test_values_that_brute_force_cannot_list(server: RunningServer) -> None:
    sampler = {"name": "BruteForceSampler"}
    pod = pod_of(server, "brute", {"objectives": DEFINITION["objectives"], "sampler": sampler})
    wide = {"name": "IntDistribution", "attributes": {"low": 0, "high": 10**9, "log": False, "step": 1}}
    refused = pod.post("/suggest", json={"name": "n", "distribution": wide})
    assert (refused.status_code, "has 1,000,000,001; the limit is 100,000" in refused.text) == (422, True)


def test_what_is_large_or_in_any_script_works(server: RunningServer) -> None:
    """200 parameters, the limits of floats, and names that are not ASCII."""
    largest, smallest = 1.7976931348623157e308, 5e-324
    ranges = [(0, largest), (smallest, largest), (0, smallest), (-(2**53), 2**53)]
    space = [
        {"name": f"p{number}", "type": "float", "low": low, "high": high, "log": low == smallest}
        for number in range(200)
        for low, high in [ranges[number % 4]]
    ]
    pod = pod_of(server, "large-space", DEFINITION | {"searchSpace": space})
    names = {"ключ": "значение", "名前": ["値"], "🔑": {"👍": None}, "e\u0301": "combining"}
    values = [[0, largest], [1, -largest], [2, smallest], [3, "NaN"], [4, "Infinity"], [5, "-Infinity"]]
    assert pod.post("/report", json={"values": values}).status_code == 200
    assert pod.post("/attributes", json={"userAttrs": names}).status_code == 200
    view = pod.get(f"{server.url}/v1/studies/ml/large-space/trials/0").json()
    assert len(view["trial"]["parameters"]) == 200
    assert view["userAttrs"] == names
    assert view["reported"] == {str(step): value for step, value in values}
    assert pod.post("/result", json={"state": "COMPLETE", "values": [-largest]}).json()["values"] == [
        -largest
    ]
