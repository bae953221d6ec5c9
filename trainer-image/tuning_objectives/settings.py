"""The container's environment variables: the model, the data, and where the final model goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingsError(ValueError):
    """A variable is missing or invalid; the message names it and how to fix it."""


class Settings(NamedTuple):
    """The settings, named like the arguments of transformers' run_classification.py."""

    model: str
    dataset: str | None
    dataset_config: str | None
    files: dict[str, str]
    """Data files by split: train, validation, test."""
    splits: dict[str, str | None]
    """The dataset's names for its splits, where they are set."""
    text_columns: list[str]
    label_column: str
    metric: str
    max_seq_length: int | None
    output_dir: str | None
    max_samples: dict[str, int | None]
    training_arguments: dict[str, Any]


SPLITS = ("train", "validation", "test")
SAMPLES = {"train": "MAX_TRAIN_SAMPLES", "validation": "MAX_EVAL_SAMPLES", "test": "MAX_PREDICT_SAMPLES"}


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: a variable is missing or invalid.
    """
    files = {
        split: environ[f"{split.upper()}_FILE"] for split in SPLITS if environ.get(f"{split.upper()}_FILE")
    }
    dataset = environ.get("DATASET_NAME") or None
    if (dataset is None) == (not files):
        raise SettingsError(
            "Set DATASET_NAME (a name on the Hugging Face Hub, or a folder written by save_to_disk), "
            "or TRAIN_FILE and, optionally, VALIDATION_FILE and TEST_FILE "
            "(csv, tsv, json, jsonl, parquet), not both."
        )
    if files and "train" not in files:
        given = " and ".join(f"{split.upper()}_FILE" for split in files)
        raise SettingsError(f"{given} without TRAIN_FILE: there is no training data.")
    return Settings(
        model=_required(
            environ, "MODEL_NAME_OR_PATH", "a model's name on the Hugging Face Hub, or its folder"
        ),
        dataset=dataset,
        dataset_config=environ.get("DATASET_CONFIG_NAME") or None,
        files=files,
        splits={split: environ.get(f"{split.upper()}_SPLIT_NAME") or None for split in SPLITS},
        text_columns=_names(environ.get("TEXT_COLUMN_NAME") or "text"),
        label_column=environ.get("LABEL_COLUMN_NAME") or "label",
        metric=environ.get("METRIC") or "accuracy",
        max_seq_length=_number(environ, "MAX_SEQ_LENGTH"),
        output_dir=environ.get("OUTPUT_DIR") or None,
        max_samples={split: _number(environ, name) for split, name in SAMPLES.items()},
        training_arguments=_object(environ, "TRAINING_ARGUMENTS"),
    )


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not 1 <= len(names) <= len(("text", "pair")):
        raise SettingsError(
            f"TEXT_COLUMN_NAME is '{text}', but must name one column, or two separated by a comma."
        )
    return names


def _required(environ: Mapping[str, str], name: str, what: str) -> str:
    value = environ.get(name)
    if not value:
        raise SettingsError(f"{name} is not set: {what}. Set it in the env of the trainer container.")
    return value


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise SettingsError(f"{name} is '{text}', but must be an integer greater than 0.")
    return int(text)


def _object(environ: Mapping[str, str], name: str) -> dict[str, Any]:
    text = environ.get(name) or "{}"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{name} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f'{name} must be a JSON object, for example {{"weight_decay": 0.01}}.')
    return value
