"""The no-code objective's environment and parameters; a study of it in real pods is an end-to-end test."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import tuning_trainer

ROOT = Path(tuning_trainer.__file__).parents[1]
sys.path.append(str(ROOT))  # the image's package, which no wheel has

from tuning_objectives.arguments import training_arguments  # noqa: E402
from tuning_objectives.settings import SettingsError, read_settings  # noqa: E402

FIELDS = ["learning_rate", "per_device_train_batch_size", "weight_decay", "num_train_epochs", "output_dir"]
HUB = {"MODEL_NAME_OR_PATH": "bert-base-uncased", "DATASET_NAME": "imdb"}


def test_a_model_and_a_dataset_are_enough() -> None:
    settings = read_settings(HUB)
    assert (settings.model, settings.dataset, settings.metric) == ("bert-base-uncased", "imdb", "accuracy")
    assert (settings.text_columns, settings.label_column) == (["text"], "label")
    assert settings.output_dir is settings.max_seq_length is None


def test_all_settings() -> None:
    settings = read_settings(
        {
            "MODEL_NAME_OR_PATH": "/models/bert",
            "TRAIN_FILE": "/data/a.csv",
            "TEST_FILE": "/data/b.csv",
            "TEXT_COLUMN_NAME": "premise, hypothesis",
            "LABEL_COLUMN_NAME": "gold",
            "MAX_SEQ_LENGTH": "256",
            "MAX_EVAL_SAMPLES": "100",
            "TRAINING_ARGUMENTS": '{"weight_decay": 0.01}',
            "OUTPUT_DIR": "/models/final",
        }
    )
    assert settings.files == {"train": "/data/a.csv", "test": "/data/b.csv"}
    assert settings.text_columns == ["premise", "hypothesis"]
    assert settings.max_seq_length == 256
    assert settings.max_samples == {"train": None, "validation": 100, "test": None}
    assert settings.training_arguments == {"weight_decay": 0.01}


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"DATASET_NAME": "imdb"}, "MODEL_NAME_OR_PATH is not set"),
        ({"MODEL_NAME_OR_PATH": "bert"}, "Set DATASET_NAME"),
        ({**HUB, "TRAIN_FILE": "a.csv"}, "not both"),
        ({"MODEL_NAME_OR_PATH": "bert", "TEST_FILE": "a.csv"}, "TEST_FILE without TRAIN_FILE"),
        ({**HUB, "MAX_SEQ_LENGTH": "long"}, "MAX_SEQ_LENGTH is 'long'"),
        ({**HUB, "TEXT_COLUMN_NAME": "a,b,c"}, "TEXT_COLUMN_NAME is 'a,b,c'"),
        ({**HUB, "TRAINING_ARGUMENTS": "weight_decay=1"}, "TRAINING_ARGUMENTS is not valid JSON"),
        ({**HUB, "TRAINING_ARGUMENTS": "[1]"}, "TRAINING_ARGUMENTS must be a JSON object"),
    ],
)
def test_a_variable_that_is_missing_or_wrong_is_named(environ: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        read_settings(environ)
    assert says in str(raised.value)


def test_parameters_are_training_arguments_and_override_fixed_ones() -> None:
    fixed, parameters = (
        {"weight_decay": 0.01, "learning_rate": 1.0},
        {"learning_rate": 2e-5, "batch_size": 16},
    )
    assert training_arguments(FIELDS, fixed, parameters) == {
        "weight_decay": 0.01,
        "learning_rate": 2e-5,
        "per_device_train_batch_size": 16,
    }


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (
            {"learnig_rate": 1},
            "is not a field of transformers.TrainingArguments (did you mean learning_rate",
        ),
        ({"dropout": 0.1}, "spec.searchSpace has the parameter 'dropout', which is not"),
        ({"output_dir": "/a"}, "'output_dir', which can't be set"),
        ({"batch_size": 1, "per_device_train_batch_size": 2}, "remove one of them"),
    ],
)
def test_a_parameter_that_is_not_a_training_argument_is_named(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        training_arguments(FIELDS, {}, parameters)
    assert says in str(raised.value)


def test_an_unknown_fixed_argument_is_named() -> None:
    with pytest.raises(SettingsError, match="TRAINING_ARGUMENTS has 'fp61'"):
        training_arguments(FIELDS, {"fp61": True}, {"learning_rate": 1})
