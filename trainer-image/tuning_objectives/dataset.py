"""Loads a dataset for text classification and turns its rows into tokens and label numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import datasets

from tuning_objectives.settings import SPLITS, Settings, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
HELD_OUT = 0.1
"""The share of the training rows used for validation if there is no validation split."""
SEED = 42
"""Fixed, so that every trial holds out the same rows."""
UNLABELLED = -1
"""The label in the test splits of public benchmarks, which keep the real labels secret."""


class Data(NamedTuple):
    """The rows of each split, and the names of the classes by number."""

    train: Any
    validation: Any
    test: Any | None
    labels: list[str]


def load(settings: Settings) -> Data:
    """Load the data that the settings describe; in each split the column `label` holds a number.

    Raises:
        SettingsError: a file, split or column is missing; the message lists those that exist.
    """
    splits = _splits(settings, _from_files(settings) if settings.files else _by_name(settings))
    for name, split in splits.items():
        _check_columns(settings, name, split)
    labels = _labels(splits.values(), settings.label_column)
    splits = {name: _numbered(split, settings.label_column, labels) for name, split in splits.items()}
    if "test" in splits and UNLABELLED in splits["test"].unique("label"):
        del splits["test"]
    if "validation" not in splits:
        splits |= _held_out(splits["train"])
    splits = {name: _limited(split, settings.max_samples[name]) for name, split in splits.items()}
    return Data(splits["train"], splits["validation"], splits.get("test"), [str(label) for label in labels])


def tokenized(data: Any, settings: Settings, tokenizer: Any, folder: str, name: str) -> Any:
    """Return a split with the model's inputs instead of its texts, stored in a file of the folder."""

    def encode(rows: dict[str, list[Any]]) -> dict[str, Any]:
        texts = [[str(text) for text in rows[column]] for column in settings.text_columns]
        return {
            **tokenizer(*texts, truncation=True, max_length=settings.max_seq_length),
            "label": rows["label"],
        }

    file = str(Path(folder) / f"{name}.arrow")
    return data.map(encode, batched=True, remove_columns=data.column_names, cache_file_name=file)


def _from_files(settings: Settings) -> Any:
    for split, file in settings.files.items():
        if not Path(file).is_file():
            raise SettingsError(
                f"{split.upper()}_FILE is '{file}', which does not exist. Check that its volume is mounted."
            )
    kinds = sorted({Path(file).suffix for file in settings.files.values()})
    if len(kinds) > 1 or kinds[0] not in KINDS:
        raise SettingsError(
            f"The data files end with {', '.join(kinds)}. Use one type for all of them: {', '.join(KINDS)}."
        )
    options = {"delimiter": "\t"} if kinds == [".tsv"] else {}
    return datasets.load_dataset(KINDS[kinds[0]], data_files=settings.files, **options)


def _by_name(settings: Settings) -> Any:
    folder = Path(settings.dataset or "")
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        found = datasets.load_from_disk(str(folder))
        return found if isinstance(found, datasets.DatasetDict) else {"train": found}
    return datasets.load_dataset(settings.dataset, settings.dataset_config)


def _splits(settings: Settings, found: Any) -> dict[str, Any]:
    """Return the splits by their use: train, validation, test."""
    used: dict[str, str] = {}
    for split in SPLITS:
        name = settings.splits[split] or split
        if name in found and name not in used.values():  # rows used for tuning can't be the test split
            used[split] = name
        elif settings.splits[split] or split == "train":
            raise SettingsError(
                f"The dataset has no unused split '{name}'; its splits are {', '.join(found)}. "
                f"Set {split.upper()}_SPLIT_NAME to one of them."
            )
    return {split: found[name] for split, name in used.items()}


def _check_columns(settings: Settings, split: str, data: Any) -> None:
    wanted = {"TEXT_COLUMN_NAME": settings.text_columns, "LABEL_COLUMN_NAME": [settings.label_column]}
    for variable, names in wanted.items():
        for name in names:
            if name not in data.column_names:
                raise SettingsError(
                    f"The dataset's {split} split has no column '{name}'; its columns are "
                    f"{', '.join(data.column_names)}. Set {variable} to one of them."
                )


def _labels(splits: Iterable[Any], column: str) -> list[Any]:
    """Return the classes in the order of their numbers: the dataset's own, or all that occur, sorted."""
    splits = list(splits)
    feature = splits[0].features[column]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names)
    found = {value for split in splits for value in split.unique(column)}
    if not all(isinstance(value, (str, int)) for value in found):
        kinds = ", ".join(sorted({type(value).__name__ for value in found}))
        raise SettingsError(
            f"The column '{column}' holds {kinds}, but labels must be strings or integers, one in each row. "
            "Set LABEL_COLUMN_NAME to the column of the classes."
        )
    return sorted(found)


def _numbered(data: Any, column: str, labels: list[Any]) -> Any:
    if column != "label":
        data = (data.remove_columns("label") if "label" in data.column_names else data).rename_column(
            column, "label"
        )
    if isinstance(data.features["label"], datasets.ClassLabel):
        return data
    numbers = [labels.index(value) for value in data["label"]]
    return data.remove_columns("label").add_column("label", numbers)


def _held_out(data: Any) -> dict[str, Any]:
    """Split the training rows. `train_test_split` does not support keep_in_memory for data from files."""
    shuffled = data.shuffle(seed=SEED, keep_in_memory=True)
    held_out = math.ceil(HELD_OUT * len(data))
    return {
        "train": shuffled.select(range(held_out, len(data))),
        "validation": shuffled.select(range(held_out)),
    }


def _limited(data: Any, rows: int | None) -> Any:
    if rows is None:
        return data
    return data.shuffle(seed=SEED, keep_in_memory=True).select(range(min(rows, len(data))))
