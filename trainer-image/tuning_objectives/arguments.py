"""How a trial's parameters become transformers.TrainingArguments."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from tuning_objectives.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

ALIASES = {"batch_size": "per_device_train_batch_size", "lr": "learning_rate", "epochs": "num_train_epochs"}
RESERVED = {
    "output_dir": "checkpoints go to a temporary folder, and the final model goes to OUTPUT_DIR",
    "save_strategy": "trials keep no checkpoint, which would fill the disk",
    "load_best_model_at_end": "trials keep no checkpoint, which would fill the disk",
    "do_train": "the objective trains",
    "do_eval": "the objective evaluates",
    "push_to_hub": "the final model goes to OUTPUT_DIR",
}
"""Arguments that can't be set, and why."""


def training_arguments(
    fields: Collection[str], fixed: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the keyword arguments: the fixed ones, overridden by the trial's.

    Args:
        fields: the names that TrainingArguments has.
        fixed: those of the variable TRAINING_ARGUMENTS.
        parameters: the trial's.

    Raises:
        SettingsError: one is not a training argument; the message names it and similar ones.
    """
    return {
        **_named(fields, fixed, "TRAINING_ARGUMENTS has"),
        **_named(fields, parameters, "spec.searchSpace has the parameter"),
    }


def _named(fields: Collection[str], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, value in given.items():
        field = ALIASES.get(name, name)
        if field in RESERVED:
            raise SettingsError(f"{where} '{name}', which can't be set: {RESERVED[field]}.")
        if field not in fields:
            raise SettingsError(
                f"{where} '{name}', which is not a field of transformers.TrainingArguments"
                f"{_near(name, fields)}."
            )
        if field in named:
            raise SettingsError(
                f"{where} '{name}' and another name for the training argument {field}: remove one of them."
            )
        named[field] = value
    return named


def _near(name: str, fields: Collection[str]) -> str:
    near = difflib.get_close_matches(name, [*fields, *ALIASES], n=3)
    meant = f" (did you mean {' or '.join(near)}?)" if near else ""
    return f"{meant}; examples: learning_rate, batch_size, num_train_epochs, weight_decay, warmup_steps"
