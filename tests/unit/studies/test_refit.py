"""The final training on the study server: started, retried, ended, and kept when the server restarts."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, distribution_to_json
from tuning_operator.protocol import AttributesRequest, Failure, RefitRequest, TellRequest
from tuning_operator.studies.storage import PostgresStore
from tuning_operator.studies.study.records import TRACEBACK_CHARACTERS
from tuning_operator.studies.study.refit import ATTRIBUTES_BYTES, REFIT

from tests.support.http_trial import HttpTrial, run_study
from tests.support.studies import HeldStore, Servers, ask, complete, declared, threads  # noqa: F401
from tests.support.study_server import RunningServer, running_server
from tests.support.study_server import server as server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx
    from tuning_operator.studies.study.context import Threads

STUDY = "ml/mnist"
PATH = f"/v1/studies/{STUDY}"
X = {"name": "x", "type": "float", "low": -3, "high": 3}
DEFINITION: dict[str, Any] = {"objectives": [{"metric": "loss", "direction": "minimize"}], "searchSpace": [X]}
FAILED = {"category": "Exception", "message": "out of disk", "traceback": "Traceback: ..."}


def objective(trial: Any) -> float:
    """The third trial fails; each of the others notes its epochs and reports once."""
    x = trial.suggest_float("x", -3, 3)
    if trial.number == 2:
        raise RuntimeError("the third one fails")
    trial.set_user_attr("epochs", 3)
    trial.report(x, 0)
    return x * x


@pytest.fixture
def best(server: RunningServer) -> Iterator[int]:
    """The number of the best trial of a finished study, of three trials."""
    finished = run_study(server, STUDY, DEFINITION | {"deletionPolicy": "Delete"}, objective, 3)
    yield finished["best"]["number"]
    assert server.operator().delete(PATH).status_code == 204


def start(server: RunningServer, trial: int, digest: str = "d1") -> Any:
    reply = server.operator().put(f"{PATH}/refit", json={"trial": trial, "digest": digest})
    assert reply.status_code == 200, reply.text
    return reply.json()["refit"]


def refit_of(server: RunningServer) -> Any:
    return server.operator().get(PATH).json()["refit"]


def tell(client: httpx.Client, path: str, state: str, **more: Any) -> Any:
    reply = client.post(path, json={"state": state, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_a_late_result_from_the_operator(server: RunningServer, best: int) -> None:
    """Its pod could not send it, and left it as its termination message."""
    start(server, best)
    attributes = {"userAttrs": {"model": "/models/1"}}
    tell(server.operator(), f"{PATH}/refit/result", "COMPLETE", values=[0.5], attributes=attributes)
    refit = refit_of(server)
    assert (refit["state"], refit["values"], refit["userAttrs"]) == (
        "COMPLETE",
        [0.5],
        {"model": "/models/1"},
    )


def test_started_twice_it_is_one(server: RunningServer, best: int) -> None:
    assert refit_of(server) is None
    started = start(server, best)
    assert (started["trial"], started["digest"], started["state"], started["values"]) == (
        best,
        "d1",
        "RUNNING",
        None,
    )
    attributes = {"userAttrs": {"model": "/models/1"}, "studyAttrs": {"data": "v1"}}
    server.refit_pod("ml", "mnist").post("/attributes", json=attributes)
    again = start(server, best)
    assert again == started | {"userAttrs": {"model": "/models/1", "data": "v1"}}
    tell(server.refit_pod("ml", "mnist"), "/result", "COMPLETE", values=[0.5])
    ended = start(server, best)
    assert (ended["state"], ended["values"], ended["userAttrs"]["model"]) == ("COMPLETE", [0.5], "/models/1")
    assert started["started"] == ended["started"] <= ended["finished"]


def test_another_digest_starts_another_refit(server: RunningServer, best: int) -> None:
    start(server, best)
    pod = server.refit_pod("ml", "mnist")
    pod.post("/attributes", json={"userAttrs": {"model": "/models/1"}})
    tell(pod, "/result", "COMPLETE")
    again = start(server, best, "d2")
    assert (again["state"], again["digest"], again["userAttrs"], again["finished"]) == (
        "RUNNING",
        "d2",
        {},
        None,
    )
    assert tell(pod, "/result", "COMPLETE", values=[1])["state"] == "COMPLETE"


def test_the_pod_sees_the_trial_as_it_was_before_its_run(server: RunningServer, best: int) -> None:
    start(server, best)
    pod = HttpTrial(server.refit_pod("ml", "mnist"))
    trial = server.pod("ml", "mnist", best).get(server.trial_url("ml", "mnist", best)).json()
    assert pod.view["trial"]["state"] == "RUNNING"
    assert (pod.number, pod.params) == (best, trial["trial"]["parameters"])
    assert pod.view["distributions"] == trial["distributions"]
    assert pod.view["trial"]["values"] is None
    assert trial["reported"]
    assert pod.view["reported"] == {}
    assert pod.view["userAttrs"] == {"epochs": 3}
    pod.set_user_attr("epochs", 30)
    pod.set_constraint("size", -1)
    assert HttpTrial(server.refit_pod("ml", "mnist")).view["userAttrs"] == {"epochs": 30}
    assert refit_of(server)["userAttrs"] == {"epochs": 30}, "the trial keeps its own"
    after = server.pod("ml", "mnist", best).get(server.trial_url("ml", "mnist", best)).json()
    assert after == trial


def test_reports_do_not_prune(server: RunningServer, best: int) -> None:
    start(server, best)
    pod = server.refit_pod("ml", "mnist")
    for step, value in enumerate([9.0, "NaN", "Infinity"]):
        assert pod.post("/report", json={"values": [[step, value]]}).json()["prune"] is False
    assert pod.post("/report", json={"values": [[-1, 1.0]]}).status_code == 422
    assert HttpTrial(pod).view["reported"] == {}


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "define-by-run"])
def test_suggestions_are_the_trials(server: RunningServer, declared: bool) -> None:
    definition = DEFINITION | {"deletionPolicy": "Delete"}
    if not declared:
        del definition["searchSpace"]
    best = run_study(server, STUDY, definition, objective, 2)["best"]
    start(server, best["number"])
    pod = server.refit_pod("ml", "mnist")
    assert HttpTrial(pod).view["fixed"] is declared

    def suggest(name: str, distribution: FloatDistribution) -> httpx.Response:
        form = json.loads(distribution_to_json(distribution))
        return pod.post("/suggest", json={"name": name, "distribution": form})

    assert suggest("x", FloatDistribution(-3, 3)).json() == {"value": best["parameters"]["x"]}
    assert suggest("x", FloatDistribution(-9, 9)).json() == {"value": best["parameters"]["x"]}
    other_kind = suggest("x", FloatDistribution(1e-3, 3, log=True))
    assert (other_kind.status_code, other_kind.json()["problems"][0]["field"]) == (422, "x")
    unknown = suggest("y", FloatDistribution(0, 1))
    assert unknown.status_code == 422
    message = unknown.json()["problems"][0]["message"]
    assert (
        f"the refit uses the parameters of trial {best['number']}, which has no parameter y (it has: x)."
        in message
    )
    assert "when TUNING_ROLE is final" in message
    server.operator().delete(PATH)


def test_an_attempt_fails_and_the_next_one_completes(server: RunningServer, best: int) -> None:
    start(server, best)
    pod = server.refit_pod("ml", "mnist")
    ended = tell(pod, "/result", "FAIL", failure=FAILED)
    assert (ended["state"], ended["failure"]["message"]) == ("FAIL", "out of disk")
    kept = refit_of(server)
    assert (kept["state"], kept["failure"]["traceback"]) == ("RUNNING", "Traceback: ...")
    assert kept["finished"] is None
    again = HttpTrial(pod)
    assert again.view["trial"]["state"] == "RUNNING"
    assert again.view["trial"]["failure"] is None
    tell(pod, "/result", "COMPLETE", values=["Infinity"])
    ended = refit_of(server)
    assert (ended["state"], ended["values"], ended["failure"]) == ("COMPLETE", ["Infinity"], None)


def test_the_operators_fail_is_final_and_keeps_the_last_attempts_reason(
    server: RunningServer, best: int
) -> None:
    start(server, best)
    pod, operator = server.refit_pod("ml", "mnist"), server.operator()
    tell(pod, "/result", "FAIL", failure=FAILED)
    tell(operator, f"{PATH}/refit/result", "FAIL")
    ended = refit_of(server)
    assert (ended["state"], ended["failure"]["message"]) == ("FAIL", "out of disk")
    assert ended["finished"]
    assert tell(pod, "/result", "COMPLETE", values=[1])["state"] == "FAIL", "the first result stays"
    assert HttpTrial(pod).view["trial"]["state"] == "FAIL", "so a pod that starts ends itself"
    assert pod.post("/attributes", json={"userAttrs": {"model": "late"}}).status_code == 200
    assert refit_of(server) == ended
    start(server, best, "d2")
    killed = {"category": "OutOfMemory", "message": "killed"}
    tell(operator, f"{PATH}/refit/result", "FAIL", failure=killed)
    assert refit_of(server)["failure"]["category"] == "OutOfMemory"


def test_a_result_sent_twice_is_one(server: RunningServer, best: int) -> None:
    start(server, best)
    pod = server.refit_pod("ml", "mnist")
    first = tell(pod, "/result", "COMPLETE", values=[0.5])
    ended = refit_of(server)
    assert tell(pod, "/result", "COMPLETE", values=[0.75]) == first
    assert tell(pod, "/result", "FAIL", failure=FAILED) == first
    assert tell(server.operator(), f"{PATH}/refit/result", "FAIL") == first
    assert refit_of(server) == ended


@pytest.mark.parametrize("values", [None, ["NaN"], [1, 2], ["much"]])
def test_a_model_without_a_value_is_a_success(server: RunningServer, best: int, values: Any) -> None:
    start(server, best)
    ended = tell(server.refit_pod("ml", "mnist"), "/result", "COMPLETE", values=values)
    assert (ended["state"], ended["values"]) == ("COMPLETE", None)
    assert refit_of(server)["state"] == "COMPLETE"


def test_a_refit_that_raises_trial_pruned_has_failed(server: RunningServer, best: int) -> None:
    start(server, best)
    ended = tell(server.refit_pod("ml", "mnist"), "/result", "PRUNED")
    assert (ended["state"], ended["failure"]["category"]) == ("FAIL", "Pruned")
    assert "do not raise TrialPruned" in ended["failure"]["remedy"]
    assert refit_of(server)["state"] == "RUNNING"


def test_attributes_and_failures_have_a_bound(server: RunningServer, best: int) -> None:
    start(server, best)
    pod = server.refit_pod("ml", "mnist")
    half = "x" * (ATTRIBUTES_BYTES // 2)
    assert pod.post("/attributes", json={"userAttrs": {"a": half, "b": [1]}}).status_code == 200
    refused = pod.post("/attributes", json={"userAttrs": {"c": half, "b": [2]}})
    assert refused.status_code == 422
    problem = refused.json()["problems"][0]
    assert problem["field"] == "userAttrs.c"
    assert "set the file's path as the attribute" in problem["message"]
    assert refit_of(server)["userAttrs"] == {"a": half, "b": [1]}, "all or nothing"
    assert pod.post("/attributes", json={"userAttrs": {"a": "short", "c": half}}).status_code == 200
    tell(pod, "/result", "FAIL", failure=FAILED | {"traceback": "a" * 10**6 + "the end"})
    kept = refit_of(server)["failure"]["traceback"]
    assert len(kept) == TRACEBACK_CHARACTERS
    assert kept.endswith("the end")


def test_numbers_that_json_lacks(server: RunningServer, best: int) -> None:
    start(server, best)
    pod = server.refit_pod("ml", "mnist")
    body = '{"userAttrs": {"loss": NaN, "curve": [1.5, -Infinity, {"last": Infinity}]}}'
    reply = pod.post("/attributes", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 200, reply.text
    expected = {"loss": "NaN", "curve": [1.5, "-Infinity", {"last": "Infinity"}]}
    assert refit_of(server)["userAttrs"] == expected
    assert HttpTrial(pod).view["userAttrs"] == {"epochs": 3} | expected


@pytest.mark.parametrize(
    ("trial", "status", "message"), [(2, 422, "trial 2 is FAIL and has no value"), (9, 404, "has no trial 9")]
)
def test_a_trial_that_cannot_be_refitted(
    server: RunningServer, best: int, trial: int, status: int, message: str
) -> None:
    start(server, best)
    reply = server.operator().put(f"{PATH}/refit", json={"trial": trial, "digest": "d2"})
    assert (reply.status_code, reply.json()["problems"][0]["field"]) == (status, "trial")
    assert message in reply.json()["detail"]
    assert refit_of(server)["digest"] == "d1"


@pytest.mark.usefixtures("best")
def test_before_it_has_started(server: RunningServer) -> None:
    pod = server.refit_pod("ml", "mnist")
    for path, body in {
        "/suggest": {"name": "x", "distribution": json.loads(distribution_to_json(FloatDistribution(0, 1)))},
        "/report": {"values": [[0, 1.0]]},
        "/attributes": {"userAttrs": {"a": 1}},
        "/result": {"state": "COMPLETE"},
    }.items():
        reply = pod.post(path, json=body)
        assert (reply.status_code, reply.json()["problems"][0]["field"]) == (404, "refit"), path
    assert pod.get(f"{server.url}{PATH}/refit").status_code == 404


def test_pods_keep_to_themselves(server: RunningServer, best: int) -> None:
    start(server, best)
    trial, refit = server.pod("ml", "mnist", 1), server.refit_pod("ml", "mnist")
    url = f"{server.url}{PATH}"
    for client, theirs in ((trial, f"{url}/refit"), (refit, f"{url}/trials/1")):
        for path, body in (
            ("/report", {"values": [[0, 1.0]]}),
            ("/attributes", {"userAttrs": {"a": 1}}),
            ("/result", {"state": "FAIL"}),
        ):
            assert client.post(theirs + path, json=body).status_code == 403, theirs + path
        assert client.get(theirs).status_code == 403
    assert trial.get(f"{url}/refit/study").status_code == 403
    assert trial.get(f"{url}/record").status_code == 403
    assert refit.get(f"{url}/record").status_code == 403
    assert (refit_of(server)["state"], refit_of(server)["userAttrs"]) == ("RUNNING", {})


def test_each_change_is_in_the_feed(server: RunningServer, best: int) -> None:
    operator, pod = server.operator(), server.refit_pod("ml", "mnist")
    cursor = operator.get("/v1/changes").json()["cursor"]

    def changed() -> bool:
        nonlocal cursor
        found = operator.get("/v1/changes", params={"after": cursor, "timeout": 0}).json()
        cursor = found["cursor"]
        return bool(found["studies"] == [["ml", "mnist"]])

    start(server, best)
    assert changed()
    start(server, best)
    assert not changed()
    pod.post("/report", json={"values": [[0, 1.0]]})
    assert not changed()
    pod.post("/attributes", json={"userAttrs": {"model": "/m"}})
    assert changed()
    pod.post("/attributes", json={"userAttrs": {"model": "/m"}})
    assert not changed()
    tell(pod, "/result", "FAIL", failure=FAILED)
    assert changed()
    tell(pod, "/result", "COMPLETE")
    assert changed()


def test_a_study_deleted_in_the_middle(server: RunningServer) -> None:
    best = run_study(server, STUDY, DEFINITION, objective, 1)["best"]["number"]
    start(server, best)
    operator, pod = server.operator(), server.refit_pod("ml", "mnist")
    assert operator.delete(PATH).status_code == 204
    study = optuna.load_study(study_name=STUDY, storage=server.server.service._store.storage)
    kept = study._storage.get_study_system_attrs(study._study_id)[REFIT]
    assert (kept["state"], kept["failure"]["category"]) == ("FAIL", "StudyDeleted")
    assert operator.get("/v1/changes").json()["studies"] == []
    assert pod.post("/result", json={"state": "COMPLETE"}).status_code == 404
    assert operator.put(PATH, json=DEFINITION | {"deletionPolicy": "Delete"}).json()["refit"] is None
    assert start(server, best)["state"] == "RUNNING", "created again, it is refitted"
    assert operator.delete(PATH).status_code == 204


@pytest.mark.parametrize("ended", [False, True])
def test_a_server_that_takes_over_goes_on(database_url: str, ended: bool) -> None:
    with running_server(PostgresStore(database_url)) as first:
        best = run_study(first, STUDY, DEFINITION, objective, 1)["best"]["number"]
        start(first, best)
        pod = first.refit_pod("ml", "mnist")
        pod.post("/attributes", json={"userAttrs": {"model": "/models/1"}})
        tell(pod, "/result", "FAIL", failure=FAILED)
        if ended:
            tell(pod, "/result", "COMPLETE", values=[0.5])
        kept = refit_of(first)
    with running_server(PostgresStore(database_url)) as second:
        unsettled = second.operator().get("/v1/changes").json()["studies"]
        assert unsettled == ([] if ended else [["ml", "mnist"]])
        assert refit_of(second) == kept
        assert start(second, best) == kept
        result = tell(second.refit_pod("ml", "mnist"), "/result", "COMPLETE", values=[0.75])
        assert result["values"] == ([0.5] if ended else [0.75])


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "another"])
async def test_what_happens_while_a_result_waits_for_its_attributes_stays(
    threads: Threads,  # noqa: F811
    ended: bool,
) -> None:
    """The operator ends the refit, or starts another one, while the pod's attributes become durable."""
    store = HeldStore()
    engine = await declared(Servers(threads, store).start())
    await ask(engine, 1, 1)
    await engine.tell(0, complete(1.0))
    await engine.refit.begin(RefitRequest(trial=0, digest="d1"))
    result = TellRequest(
        state="COMPLETE", values=[1], attributes=AttributesRequest(user_attrs={"model": "/models/1"})
    )
    store.hold()
    pods = asyncio.create_task(engine.refit.tell(result, engine.definition, by_pod=True))
    await asyncio.sleep(0)
    assert engine.refit.record is not None
    assert engine.refit.record.user_attrs == {"model": "/models/1"}
    late = TellRequest(state="FAIL", failure=Failure(category="Deadline", message="It took too long."))
    operators = asyncio.create_task(
        engine.refit.tell(late, engine.definition, by_pod=False)
        if ended
        else engine.refit.begin(RefitRequest(trial=0, digest="d2"))
    )
    await asyncio.sleep(0)
    store.let_go()
    await asyncio.gather(pods, operators)
    record = engine.refit.record
    expected = ("d1", "FAIL") if ended else ("d2", "RUNNING")
    assert (record.digest, record.state, record.values) == (*expected, None)
