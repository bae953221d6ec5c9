"""What the container's environment variables say: the model, the data, where the final model goes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class SettingsError(ValueError):
    """A variable is missing or wrong; the message names it and the mend."""


class Settings(NamedTuple):
    """The variables, by the names of transformers' run_classification.py."""

    model: str
    dataset: str | None
    dataset_config: str | None
    files: dict[str, str]
    """Data files by split: train, validation, test."""
    splits: dict[str, str | None]
    """What the dataset calls its splits, where the environment says so."""
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
        SettingsError: a variable is missing or has no meaning.
    """
    files = {
        split: environ[f"{split.upper()}_FILE"] for split in SPLITS if environ.get(f"{split.upper()}_FILE")
    }
    dataset = environ.get("DATASET_NAME") or None
    if (dataset is None) == (not files):
        raise SettingsError(
            "Set DATASET_NAME (a name on the hub, or a folder that save_to_disk has written), "
            "or TRAIN_FILE and, if you have them, VALIDATION_FILE and TEST_FILE "
            "(csv, tsv, json, jsonl, parquet), not both."
        )
    if files and "train" not in files:
        raise SettingsError(f"{_listed(files)} without TRAIN_FILE: there is nothing to train on.")
    return Settings(
        model=_required(environ, "MODEL_NAME_OR_PATH", "a model's name on the hub, or its folder"),
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


def _listed(files: Mapping[str, str]) -> str:
    return " and ".join(f"{split.upper()}_FILE" for split in files)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not 1 <= len(names) <= len(("text", "pair")):
        raise SettingsError(
            f"TEXT_COLUMN_NAME is '{text}': name one column, or two with a comma (a pair of texts)."
        )
    return names


def _required(environ: Mapping[str, str], name: str, what: str) -> str:
    value = environ.get(name)
    if not value:
        raise SettingsError(f"{name} is not set: {what}. Give it in the trainer container's env.")
    return value


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or int(text) == 0:
        raise SettingsError(f"{name} is '{text}': it must be a whole number above 0.")
    return int(text)


def _object(environ: Mapping[str, str], name: str) -> dict[str, Any]:
    text = environ.get(name) or "{}"
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f'{name} must be a JSON object, for example {{"weight_decay": 0.01}}.')
    return value
