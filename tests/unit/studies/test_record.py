"""The whole record of a study: for the operator, a namespace's readers, and the refit's pod."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
    json_to_distribution,
)
from optuna.trial import TrialState, create_trial
from tuning_operator.protocol import FinishedStudy
from tuning_operator.studies.storage.base import MemoryStore
from tuning_operator.studies.storage.store import PostgresStore
from tuning_operator.studies.study.records import TRIALS_IN_A_PIECE, json_pieces

from tests.support.http_trial import run_study
from tests.support.study_server import RunningServer, running_server

if TYPE_CHECKING:
    from collections.abc import Iterator

STUDY = "/v1/studies/ml/mnist"
DEFINITION: dict[str, Any] = {"objectives": [{"metric": "loss", "direction": "minimize"}]}


def objective(trial: Any) -> float:
    if trial.number == 1:
        raise RuntimeError("the second one fails")
    x, kind = trial.suggest_float("x", 0, 1), trial.suggest_categorical("kind", ["a", None, 2])
    trial.report(math.inf if trial.number else math.nan, 0)
    trial.report(x, 5)
    trial.set_user_attr("curve", [1.5, x])
    trial.set_constraint("size", -1)
    return x + (kind is None)


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """A server with a study of four trials, of which one has failed and one runs."""
    with running_server() as server:
        run_study(server, "ml/mnist", DEFINITION, objective, 3)
        server.operator().post(f"{STUDY}/ask", json={"parallelism": 1, "maxTrials": 4})
        yield server


def test_the_record_from_a_trial_on(server: RunningServer) -> None:
    content = server.reader("ml").get(f"{STUDY}/record", params={"first": 2}).content
    assert [trial.number for trial in FinishedStudy.model_validate_json(content).trials] == [2, 3]
    beyond = server.reader("ml").get(f"{STUDY}/record", params={"first": 9}).content
    assert FinishedStudy.model_validate_json(beyond).trials == []


@pytest.mark.parametrize("kind", ["memory", "Postgres"])
def test_the_records_of_a_namespace(database_url: str, kind: str) -> None:
    store = MemoryStore() if kind == "memory" else PostgresStore(database_url)
    with running_server(store) as server:
        for name in ("ml/mnist", "ml/cnn", "mlx/other", "m_/odd"):
            run_study(server, name, DEFINITION, objective, 3 if name == "ml/mnist" else 0)
        server.operator().delete(STUDY)  # its TuningStudy is gone
        found = server.reader("ml").get("/v1/studies/ml").json()["records"]
        assert [(record["name"], record["trials"]) for record in found] == [("cnn", 0), ("mnist", 3)]
        last = json.loads(server.operator().get(f"{STUDY}/record").content)["trials"][-1]
        assert found[1]["finished"][:19] == last["finished"][:19]
        assert found[0]["finished"] is None
        assert [record["name"] for record in server.operator().get("/v1/studies/m_").json()["records"]] == [
            "odd"
        ]
        assert server.reader("mlx").get("/v1/studies/ml").status_code == 403
        assert server.pod("ml", "cnn", 0).get(f"{server.url}/v1/studies/ml").status_code == 403


def test_the_record_is_the_study(server: RunningServer) -> None:
    study = optuna.load_study(study_name="ml/mnist", storage=server.server.service._store.storage)
    study.set_user_attr("note", [math.nan])
    content = server.operator().get(f"{STUDY}/record").content
    json.loads(content, parse_constant=pytest.fail)
    record = FinishedStudy.model_validate_json(content)
    assert (record.directions, record.user_attrs) == (["minimize"], {"note": ["NaN"]})
    assert [trial.state for trial in record.trials] == ["COMPLETE", "FAIL", "COMPLETE", "RUNNING"]
    for trial, own in zip(record.trials, study.trials, strict=True):
        assert (trial.number, trial.state) == (own.number, own.state.name)
        assert (trial.values, trial.parameters) == (own.values, own.params)
        assert str(trial.reported) == str(own.intermediate_values)
        assert (trial.user_attrs, trial.constraints) == (own.user_attrs, own.constraints)
        forms = trial.distributions.items()
        assert {name: json_to_distribution(json.dumps(form)) for name, form in forms} == own.distributions
        assert own.datetime_start
        assert trial.started == own.datetime_start.astimezone()
        assert trial.finished == (own.datetime_complete and own.datetime_complete.astimezone())


def test_readers_and_the_refits_pod_get_the_same(server: RunningServer) -> None:
    operators = server.operator().get(f"{STUDY}/record")
    assert operators.headers["Content-Type"] == "application/json"
    assert server.reader("ml").get(f"{STUDY}/record").content == operators.content
    assert server.operator().put(f"{STUDY}/refit", json={"trial": 0, "digest": "d"}).is_success
    assert server.refit_pod("ml", "mnist").get("/study").content == operators.content


def test_callers_that_are_refused(server: RunningServer) -> None:
    elsewhere = server.reader("prod").get(f"{STUDY}/record")
    assert (elsewhere.status_code, "not of ml" in elsewhere.json()["detail"]) == (403, True)
    pod = server.pod("ml", "mnist", 0).get(f"{server.url}{STUDY}/record")
    assert (pod.status_code, "kubectl create token default -n ml" in pod.json()["detail"]) == (403, True)
    reader = server.reader("ml")
    for method, path in (
        ("GET", STUDY),
        ("DELETE", STUDY),
        ("GET", f"{STUDY}/trials/0"),
        ("GET", "/v1/changes"),
    ):
        refused = reader.request(method, path)
        assert refused.status_code == 403
        assert "GET .../record" in refused.json()["detail"]
    assert reader.get("/v1/studies/ml/unknown/record").status_code == 404


@pytest.mark.parametrize("count", [0, 1, TRIALS_IN_A_PIECE, TRIALS_IN_A_PIECE + 1, 3 * TRIALS_IN_A_PIECE])
def test_it_is_written_in_pieces(count: int) -> None:
    study = optuna.create_study()
    distributions = {
        "a": FloatDistribution(0, 1),
        "b": IntDistribution(1, 5, step=2),
        "c": CategoricalDistribution([None, "]"]),
    }
    study.add_trials(
        create_trial(params={"a": 0.5, "b": 3, "c": "]"}, distributions=distributions, value=float(number))
        for number in range(count)
    )
    written = list(json_pieces(study))
    assert len(written) == 2 + math.ceil(count / TRIALS_IN_A_PIECE)
    record = FinishedStudy.model_validate_json(b"".join(written))
    assert [trial.values for trial in record.trials] == [[float(number)] for number in range(count)]
    forms = {name: json.loads(distribution_to_json(kind)) for name, kind in distributions.items()}
    assert all(trial.distributions == forms for trial in record.trials)
    assert {trial.state for trial in record.trials} <= {TrialState.COMPLETE.name}
