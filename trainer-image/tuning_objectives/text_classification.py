"""`objective: tuning_objectives.text_classification:objective` tunes a Hugging Face text classifier.

Configured by the container's environment (docs/guide/trial-code.md). A trial trains on the training split,
evaluates each epoch and saves nothing; the refit trains on training and validation rows and saves the model.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import concatenate_datasets
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

from tuning_objectives.arguments import training_arguments
from tuning_objectives.classification_metrics import metric_function
from tuning_objectives.dataset import Data, load, tokenized
from tuning_objectives.settings import Settings, SettingsError, read_settings
from tuning_trainer.huggingface import TuningCallback

if TYPE_CHECKING:
    from collections.abc import Mapping


def objective(trial: Any) -> float | None:
    """Train with the trial's parameters; return the metric on the validation split.

    In the refit (TUNING_ROLE is `final`), return the metric on the test split, if there is one, and set the
    user attribute `model` to the folder of the model.

    Raises:
        SettingsError: a variable or a parameter is invalid; the message names it.
        TrialPruned: the trial is unpromising.
    """
    settings = read_settings(os.environ)
    arguments = _arguments(settings, trial.params)
    if os.environ.get("TUNING_ROLE") == "final":
        return _refit(trial, settings, arguments)
    data = load(settings)
    with tempfile.TemporaryDirectory(prefix="tuning-") as folder:
        trainer = _trainer(settings, {**arguments, "output_dir": folder}, data, data.train, data.validation)
        trainer.add_callback(TuningCallback(trial, settings.metric))
        trainer.train()
        return _last_evaluation(trainer, settings.metric)


def _refit(trial: Any, settings: Settings, arguments: Mapping[str, Any]) -> float | None:
    target = _output_folder(settings)
    data = load(settings)
    everything = concatenate_datasets([data.train, data.validation])
    with tempfile.TemporaryDirectory(prefix="tuning-") as folder:
        arguments = {**arguments, "eval_strategy": "no", "output_dir": folder}
        trainer = _trainer(settings, arguments, data, everything, data.test)
        trainer.train()
        trainer.save_model(target)
        trial.set_user_attr("model", target)
        return None if data.test is None else _evaluation(trainer, settings.metric)


def _arguments(settings: Settings, parameters: Mapping[str, Any]) -> dict[str, Any]:
    if not parameters:
        raise SettingsError(
            "The trial has no parameters. Add some to spec.searchSpace, for example learning_rate."
        )
    fields = [field.name for field in dataclasses.fields(TrainingArguments) if field.init]
    given = training_arguments(fields, settings.training_arguments, parameters)
    return {
        "eval_strategy": "epoch",
        "report_to": "none",
        "disable_tqdm": True,
        **given,
        "save_strategy": "no",
    }


def _output_folder(settings: Settings) -> str:
    """Return the folder of the final model, created now so that a mistake shows before the training."""
    if settings.output_dir is None:
        raise SettingsError(
            "OUTPUT_DIR is not set. Set it to a folder for the final model on a volume that outlives the pod."
        )
    try:
        Path(settings.output_dir).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=settings.output_dir).close()
    except OSError as error:
        raise SettingsError(
            f"The pod cannot write to OUTPUT_DIR, '{settings.output_dir}': {error.strerror}. "
            "Check that its volume is mounted and that the pod's user (fsGroup) can write there."
        ) from None
    return settings.output_dir


def _trainer(
    settings: Settings, arguments: Mapping[str, Any], data: Data, train: Any, measured: Any
) -> Trainer:
    made = TrainingArguments(**arguments)
    set_seed(made.seed)  # the classifier's new head gets the same weights in every trial
    tokenizer = AutoTokenizer.from_pretrained(settings.model)
    model = AutoModelForSequenceClassification.from_pretrained(
        settings.model,
        num_labels=len(data.labels),
        id2label=dict(enumerate(data.labels)),
        label2id={label: number for number, label in enumerate(data.labels)},
    )
    rows = {"train": train, "measured": measured}
    folder = str(made.output_dir)
    ready = {
        name: tokenized(split, settings, tokenizer, folder, name)
        for name, split in rows.items()
        if split is not None
    }
    return Trainer(
        model=model,
        args=made,
        train_dataset=ready["train"],
        eval_dataset=ready.get("measured"),
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=metric_function(settings.metric, len(data.labels)),
    )


def _last_evaluation(trainer: Trainer, metric: str) -> float:
    """Return the metric of the last evaluation during training; evaluate now if there was none."""
    found = [entry[f"eval_{metric}"] for entry in trainer.state.log_history if f"eval_{metric}" in entry]
    return float(found[-1]) if found else _evaluation(trainer, metric)


def _evaluation(trainer: Trainer, metric: str) -> float:
    return float(trainer.evaluate()[f"eval_{metric}"])
