"""The study server on a real Postgres: what it has acknowledged is kept, whatever happens next."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.trial import TrialState
from tuning_operator.studies.storage import PostgresStore

from tests.support.http_trial import run_study, run_trial
from tests.support.study_server import RunningServer, running_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.postgres import EmbeddedPostgres

STUDY = "ml/mnist"
PATH = f"/v1/studies/{STUDY}"
SPACE = [
    {"name": "x", "type": "float", "low": -3, "high": 3},
    {"name": "kind", "type": "categorical", "choices": ["a", "b", True]},
]
SAMPLER = {"name": "TPESampler", "args": {"seed": 1, "n_startup_trials": 5}}
PRUNER = {"name": "MedianPruner", "args": {"n_startup_trials": 2}}
DEFINITION: dict[str, Any] = {
    "objectives": [{"metric": "loss", "direction": "minimize"}],
    "searchSpace": SPACE,
    "sampler": SAMPLER,
    "pruner": PRUNER,
}


def objective(trial: Any) -> float:
    x, kind = trial.suggest_float("x", -3, 3), trial.suggest_categorical("kind", ["a", "b", True])
    loss = x * x + {"a": 0, "b": 1}.get(kind, 0.5)
    for step in range(4):
        trial.report(loss + 3 / (1 + step), step)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def recorded(database_url: str) -> optuna.Study:
    """Return the study as plain Optuna reads it from the database."""
    return optuna.load_study(study_name=STUDY, storage=database_url)


@pytest.fixture
def server(database_url: str) -> Iterator[RunningServer]:
    with running_server(PostgresStore(database_url)) as server:
        yield server


def essence(trials: list[optuna.trial.FrozenTrial]) -> list[Any]:
    return [(t.number, t.state, t.params, t.distributions, t.values, t.intermediate_values) for t in trials]


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "define-by-run"])
def test_the_record_is_that_of_optimize(server: RunningServer, database_url: str, declared: bool) -> None:
    definition = DEFINITION if declared else {k: v for k, v in DEFINITION.items() if k != "searchSpace"}
    run_study(server, STUDY, definition, objective, 15)
    theirs = optuna.create_study(
        study_name=STUDY,
        sampler=optuna.samplers.TPESampler(**SAMPLER["args"]),
        pruner=optuna.pruners.MedianPruner(**PRUNER["args"]),
    )
    theirs.optimize(objective, n_trials=15)
    assert {trial.state.name for trial in theirs.trials} >= {"COMPLETE", "PRUNED"}
    assert essence(recorded(database_url).trials) == essence(theirs.trials)


def test_a_server_that_takes_over_knows_all(database_url: str) -> None:
    with running_server(PostgresStore(database_url)) as first:
        run_study(first, STUDY, DEFINITION, objective, 6)
        before = first.operator().post(f"{PATH}/ask", json={"parallelism": 2, "maxTrials": 8}).json()
        first.pod("ml", "mnist", 6).post("/report", json={"values": [[0, 0.5]]})
    with running_server(PostgresStore(database_url)) as second:
        assert second.operator().get(PATH).json() == before
        assert second.operator().get("/v1/changes").json()["studies"] == [["ml", "mnist"]]
        pod = second.pod("ml", "mnist", 6)
        pod.post("/report", json={"values": [[0, 0.75], [1, 0.25]]})
        run_trial(second, STUDY, 6, objective)
    assert recorded(database_url).trials[6].intermediate_values[0] == 0.5
    assert recorded(database_url).trials[6].state.is_finished()


def test_a_second_server_waits_until_the_first_has_ended(database_url: str) -> None:
    with running_server(PostgresStore(database_url)) as first:
        first.operator().put(PATH, json=DEFINITION)
        with running_server(PostgresStore(database_url), wait=False) as second:
            operator = second.operator()
            assert operator.get("/readyz").status_code == 503
            assert operator.get(PATH).status_code == 503
            first.close()
            second.wait_until("is ready", lambda: second.server.service.ready)
            assert operator.get(PATH).status_code == 200


def commits(server: RunningServer) -> float:
    lines = server.operator().get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("tuning_commits_total"))


def test_commits_are_counted(server: RunningServer) -> None:
    before = commits(server)
    run_study(server, STUDY, DEFINITION, objective, 1)
    assert commits(server) > before


def test_trials_asked_for_at_once_share_commits(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One creates the first trial, one the others, and one writes the parameters."""
    monkeypatch.setattr("tuning_operator.studies.storage.committer._HEARTBEAT", 60.0)
    server.operator().put(PATH, json=DEFINITION)
    before = commits(server)
    asked = server.operator().post(f"{PATH}/ask", json={"parallelism": 16, "maxTrials": 16}).json()
    assert len(asked["running"]) == 16
    assert commits(server) - before <= 3


def test_changes_by_plain_optuna_are_picked_up(server: RunningServer, database_url: str) -> None:
    operator = server.operator()
    operator.put(PATH, json=DEFINITION)
    assert (
        operator.post(f"{PATH}/ask", json={"parallelism": 1, "maxTrials": 9}).json()["counts"]["running"] == 1
    )
    study = recorded(database_url)
    study.enqueue_trial({"x": 0.5, "kind": "b"})
    study.tell(0, state=TrialState.FAIL)
    summary = operator.post(f"{PATH}/ask", json={"parallelism": 1, "maxTrials": 9}).json()
    assert [trial["number"] for trial in summary["running"]] == [1]
    assert summary["running"][0]["parameters"] == {"x": 0.5, "kind": "b"}
    assert summary["counts"]["fail"] == 1


def test_a_result_that_plain_optuna_wrote_first_stays(server: RunningServer, database_url: str) -> None:
    operator = server.operator()
    operator.put(PATH, json=DEFINITION)
    operator.post(f"{PATH}/ask", json={"parallelism": 1, "maxTrials": 9})
    recorded(database_url).tell(0, 0.25)
    ended = server.pod("ml", "mnist", 0).post("/result", json={"state": "FAIL"}).json()
    assert (ended["state"], ended["values"]) == ("COMPLETE", [0.25])
    summary = operator.get(PATH).json()
    assert (summary["counts"]["complete"], summary["counts"]["fail"]) == (1, 0)
    assert summary["best"]["number"] == 0


def test_a_summary_follows_the_record(
    server: RunningServer, database_url: str, paused_commits: Callable[[], Callable[[], None]]
) -> None:
    """A pod's result is in memory, and not in the database yet, when plain Optuna ends the trial first."""
    operator = server.operator()
    operator.put(PATH, json=DEFINITION)
    operator.post(f"{PATH}/ask", json={"parallelism": 2, "maxTrials": 9})
    resume = paused_commits()
    with ThreadPoolExecutor() as threads:
        pods = [server.pod("ml", "mnist", number) for number in range(2)]
        results = [
            threads.submit(pod.post, "/result", json={"state": "COMPLETE", "values": [0.5]}) for pod in pods
        ]
        (engine,) = server.server.service.studies
        server.wait_until("has the results in memory", lambda: engine.counts.complete == 2)
        summaries = [threads.submit(operator.get, PATH) for _ in range(2)]
        recorded(database_url).tell(0, state=TrialState.FAIL)
        done, _ = wait([*results, *summaries], timeout=0.1)
        assert not done
        resume()
        for summary in summaries:
            counts = summary.result(240).json()["counts"]
            assert (counts["complete"], counts["fail"]) == (1, 1)
        assert [result.result(240).json()["state"] for result in results] == ["FAIL", "COMPLETE"]


def test_a_record_that_others_deleted_is_not_known(server: RunningServer, database_url: str) -> None:
    operator = server.operator()
    operator.put(PATH, json=DEFINITION)
    optuna.delete_study(study_name=STUDY, storage=database_url)
    assert operator.post(f"{PATH}/ask", json={"parallelism": 1, "maxTrials": 9}).status_code == 404
    assert operator.put(PATH, json=DEFINITION).status_code == 200
    asked = operator.post(f"{PATH}/ask", json={"parallelism": 1, "maxTrials": 9})
    assert [trial["number"] for trial in asked.json()["running"]] == [0]


@pytest.mark.parametrize("path", ["/report", "/result"])
def test_what_pods_send_to_a_record_that_others_deleted(
    server: RunningServer, database_url: str, path: str
) -> None:
    operator, pod = server.operator(), server.pod("ml", "mnist", 0)
    operator.put(PATH, json=DEFINITION)
    operator.post(f"{PATH}/ask", json={"parallelism": 1, "maxTrials": 1})
    optuna.delete_study(study_name=STUDY, storage=database_url)
    body = {"/report": {"values": [[0, 0.5]]}, "/result": {"state": "COMPLETE", "values": [0.5]}}[path]
    assert [pod.post(path, json=body).status_code for _ in range(2)] == [404, 404]
    assert operator.get(PATH).status_code == 404


@pytest.mark.parametrize("running", [0, 1])
@pytest.mark.parametrize(
    ("policy", "query"), [("Delete", ""), ("Retain", ""), ("Retain", "?namespaceDeleted=true")]
)
def test_a_study_whose_record_others_deleted_can_be_deleted(
    server: RunningServer, database_url: str, policy: str, query: str, running: int
) -> None:
    operator, definition = server.operator(), DEFINITION | {"deletionPolicy": policy, "namespaceUid": "n1"}
    operator.put(PATH, json=definition | {"uid": "first"})
    operator.post(f"{PATH}/ask", json={"parallelism": running, "maxTrials": running})
    optuna.delete_study(study_name=STUDY, storage=database_url)
    assert operator.delete(PATH + query).status_code == 204
    assert operator.get(PATH).status_code == 404
    assert operator.put(PATH, json=definition | {"uid": "second"}).status_code == 200
    assert recorded(database_url).trials == []


@pytest.mark.parametrize("running", [0, 1])
@pytest.mark.parametrize("policy", ["Delete", "Retain"])
def test_a_study_whose_record_others_deleted_can_be_declared_by_another_resource(
    server: RunningServer, database_url: str, policy: str, running: int
) -> None:
    operator, definition = server.operator(), DEFINITION | {"deletionPolicy": policy}
    operator.put(PATH, json=definition | {"uid": "first"})
    operator.post(f"{PATH}/ask", json={"parallelism": running, "maxTrials": running})
    optuna.delete_study(study_name=STUDY, storage=database_url)
    assert operator.put(PATH, json=definition | {"uid": "second"}).status_code == 200
    assert recorded(database_url).trials == []


def test_deletion_takes_the_record_along(server: RunningServer, database_url: str) -> None:
    operator = server.operator()
    operator.put(PATH, json=DEFINITION | {"deletionPolicy": "Delete"})
    operator.post(f"{PATH}/ask", json={"parallelism": 2, "maxTrials": 9})
    assert operator.delete(PATH).status_code == 204
    with pytest.raises(KeyError):
        recorded(database_url)


def test_no_reply_goes_ahead_of_the_record(
    server: RunningServer, database_url: str, postgres: EmbeddedPostgres
) -> None:
    """The database crashes again and again while pods report; everything acknowledged is in it."""
    operator = server.operator()
    operator.put(PATH, json=DEFINITION)
    operator.post(f"{PATH}/ask", json={"parallelism": 4, "maxTrials": 4})
    answered: dict[int, list[int]] = {number: [] for number in range(4)}
    over = threading.Event()

    def report(number: int) -> None:
        pod, step = server.pod("ml", "mnist", number), 0
        while not over.is_set():
            reply = pod.post("/report", json={"values": [[step, 0.5]]})
            if reply.status_code == 200:
                answered[number].append(step)
                step += 1

    pods = [threading.Thread(target=report, args=(number,)) for number in answered]
    for pod in pods:
        pod.start()
    for crash in range(1, 4):
        server.wait_until("answers", lambda goal=crash * 20: all(len(a) >= goal for a in answered.values()))
        postgres.crash()
        postgres.start()
    server.wait_until("answers again", lambda: all(len(a) >= 80 for a in answered.values()))
    over.set()
    for pod in pods:
        pod.join()
    trials = recorded(database_url).trials
    assert all(set(steps) <= set(trials[number].intermediate_values) for number, steps in answered.items())
