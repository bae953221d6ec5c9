"""The record becomes Optuna's study, nothing lost."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from tuning_operator.cli.plots.optuna_file import save_study
from tuning_operator.cli.plots.optuna_study import study_of
from tuning_operator.protocol import FinishedStudy

from tests.unit.cli import records

if TYPE_CHECKING:
    from pathlib import Path


def test_the_study_is_the_one_that_optuna_ran() -> None:
    ran = records.study(records.pruning, 20)
    ran.set_user_attr("dataset", {"name": "digits"})
    made = study_of(records.record(ran), ["loss"])
    assert made.metric_names == ["loss"]
    assert made.directions == ran.directions
    assert made.user_attrs == ran.user_attrs
    assert [trial.state for trial in made.trials] == [trial.state for trial in ran.trials]
    for mine, theirs in zip(made.trials, ran.trials, strict=True):
        for field in ("number", "values", "params", "distributions", "intermediate_values", "user_attrs"):
            assert getattr(mine, field) == getattr(theirs, field), field
        assert mine.constraints == theirs.constraints
    assert made.best_trial.number == ran.best_trial.number


def test_trials_stand_in_the_order_of_their_numbers() -> None:
    record = records.record(records.study(records.one, 3))
    turned = record.model_copy(update={"trials": record.trials[::-1]})
    assert study_of(turned, ["y"]).trials[0].params == record.trials[0].parameters


def test_one_objective_of_several_keeps_its_direction_and_best() -> None:
    ran = records.study(records.two, 10, directions=["maximize", "minimize"])
    made = study_of(records.record(ran), ["accuracy", "latency"], objective=1)
    assert made.direction == optuna.study.StudyDirection.MINIMIZE
    assert made.metric_names == ["latency"]
    assert made.best_value == min(trial.values[1] for trial in ran.trials)


def test_trials_left_out_keep_the_numbers_of_the_others() -> None:
    ran = records.study(records.one, 5)
    made = study_of(records.record(ran), ["y"], only={1, 4})
    finished = [trial for trial in made.trials if trial.state.is_finished()]
    assert [(trial.number, trial.params) for trial in finished] == [
        (number, ran.trials[number].params) for number in (1, 4)
    ]


@pytest.mark.parametrize(("choice", "seen"), [([64, [32]], (64, (32,))), ({"a": 1}, '{"a": 1}')])
def test_a_choice_that_is_no_scalar_can_be_plotted(choice: object, seen: object) -> None:
    form = {"name": "CategoricalDistribution", "attributes": {"choices": [choice, "other"]}}
    trial = {"number": 0, "state": "COMPLETE", "values": [1.0], "parameters": {"sizes": choice}}
    data = {"directions": ["minimize"], "trials": [trial | {"distributions": {"sizes": form}}]}
    made = study_of(FinishedStudy.model_validate_json(json.dumps(data)), ["loss"])
    assert made.best_params == {"sizes": seen}


@pytest.mark.parametrize("choice", [math.inf, math.nan, "NaN", "Infinity"])
def test_a_choice_that_json_lacks_is_exported_and_plotted(choice: object, tmp_path: Path) -> None:
    ran = records.study(lambda trial: len(str(trial.suggest_categorical("c", [choice]))), 1)
    record = records.record(ran)
    journal, database = tmp_path / "study.log", tmp_path / "study.db"
    save_study(record, "s", ["loss"], journal, journal=True)
    save_study(record, "s", ["loss"], database, journal=False)
    storages = (JournalStorage(JournalFileBackend(str(journal))), f"sqlite:///{database}")
    loaded = [optuna.load_study(study_name="s", storage=storage) for storage in storages]
    for study in (study_of(record, ["loss"]), *loaded):
        assert repr(study.best_params) == repr({"c": choice})
        assert study.trials[0].distributions == ran.trials[0].distributions


def test_an_attribute_that_json_lacks_is_exported_and_plotted(tmp_path: Path) -> None:
    def diverged(trial: optuna.Trial) -> float:
        trial.set_user_attr("loss", [math.nan, -math.inf])
        return 1.0

    ran = records.study(diverged, 1)
    ran.set_user_attr("baseline", math.inf)
    record = records.record(ran)
    save_study(record, "s", ["loss"], tmp_path / "study.db", journal=False)
    loaded = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path / 'study.db'}")
    for study in (study_of(record, ["loss"]), loaded):
        assert repr(study.trials[0].user_attrs) == "{'loss': [nan, -inf]}"
        assert study.user_attrs == {"baseline": math.inf}
