"""The protocol's models: what they do beyond holding values."""

import math

import optuna
import pytest
from tuning_operator.protocol import Failure, StudyDefinition, WorkReply
from tuning_operator.resource.study import Objective
from tuning_operator.studies.study.records import view_of


@pytest.mark.parametrize(
    ("message", "remedy", "described"),
    [
        ("KeyError: 'b'", None, "KeyError: 'b'"),
        ("exited with code 2", "See its log.", "exited with code 2. See its log."),
        ("It was killed.", "Raise its memory limit.", "It was killed. Raise its memory limit."),
        ("Is it there?\n", "Create it.", "Is it there? Create it."),
    ],
)
def test_a_failure_describes_what_happened_and_how_to_fix_it(message, remedy, described):
    assert Failure(category="Exception", message=message, remedy=remedy).describe() == described


def test_choices_that_json_lacks_are_not_replaced():
    trial = optuna.create_study().ask()
    trial.suggest_categorical("c", [math.inf, math.nan, "NaN", 1.5])
    definition = StudyDefinition(objectives=[Objective(metric="loss", direction="minimize")])
    reply = WorkReply(start=[view_of(trial.study.trials[0], definition)])
    received = WorkReply.model_validate_json(reply.model_dump_json(by_alias=True)).start[0]
    assert repr(received.distributions["c"]["attributes"]["choices"]) == "[inf, nan, 'NaN', 1.5]"
