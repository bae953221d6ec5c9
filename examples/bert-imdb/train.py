"""Fine-tunes BERT to classify movie reviews (IMDB) with the Hugging Face Trainer.

`python train.py` runs the search on your machine with Optuna, then the final training. The environment
variables MODEL and DATASET are names on the Hugging Face Hub, or folders. The final model is saved to
MODEL_DIR.
"""

import os
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import optuna
import torch
from datasets import Dataset, load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    set_seed,
)
from tuning_trainer.huggingface import TuningCallback

MODEL = os.environ.get("MODEL", "bert-base-uncased")
DATASET = os.environ.get("DATASET", "stanfordnlp/imdb")
MODEL_DIR = os.environ.get("MODEL_DIR", "bert-imdb")
LABELS = {0: "negative", 1: "positive"}
SEED = 42


class Data(NamedTuple):
    """Tokenized reviews: training and validation data for the trials, and test data for the final model."""

    train: Dataset
    valid: Dataset
    everything: Dataset
    """Training and validation data."""
    test: Dataset


def objective(trial: optuna.Trial) -> float:
    """Train with the trial's parameters; return the accuracy on the validation data."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    data = load(tokenizer)
    with TemporaryDirectory() as folder:
        arguments = training_arguments(trial, folder, eval_strategy="epoch")
        trainer = trainer_of(arguments, tokenizer, data.train, data.valid)
        trainer.add_callback(TuningCallback(trial, "eval_accuracy"))  # reports each epoch and prunes
        trainer.train()
    return [entry["eval_accuracy"] for entry in trainer.state.log_history if "eval_accuracy" in entry][-1]


def final(trial: optuna.Trial) -> float:
    """Train on all training reviews, save the model and evaluate it on the test reviews."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    data = load(tokenizer)
    with TemporaryDirectory() as folder:
        arguments = training_arguments(trial, folder)
        trainer = trainer_of(arguments, tokenizer, data.everything, data.test)
        trainer.train()
    trainer.save_model(MODEL_DIR)
    trial.set_user_attr("model", MODEL_DIR)
    accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"test accuracy {accuracy:.4f}; the model is in {MODEL_DIR}", flush=True)
    return accuracy


def training_arguments(trial: optuna.Trial, folder: str, **more: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        learning_rate=trial.suggest_float("learning_rate", 1e-5, 5e-5, log=True),
        per_device_train_batch_size=trial.suggest_categorical("batch_size", [16, 32]),
        per_device_eval_batch_size=64,
        num_train_epochs=trial.suggest_int("num_train_epochs", 1, 5),
        weight_decay=0.01,
        bf16=torch.cuda.is_available() and torch.cuda.is_bf16_supported(),
        logging_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
        **more,
    )


def trainer_of(arguments: TrainingArguments, tokenizer: Any, train: Dataset, judged: Dataset) -> Trainer:
    set_seed(SEED)  # the classification head starts from the same weights in every trial
    model = AutoModelForSequenceClassification.from_pretrained(
        MODEL, id2label=LABELS, label2id={label: number for number, label in LABELS.items()}
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=judged,
        processing_class=tokenizer,
        compute_metrics=accuracy_of,
    )


def accuracy_of(prediction: EvalPrediction) -> dict[str, float]:
    right = np.argmax(prediction.predictions, axis=-1) == prediction.label_ids
    return {"accuracy": float(right.mean())}


def load(tokenizer: Any) -> Data:
    """Return the tokenized reviews. A tenth of the training reviews, always the same, is for validation."""
    reviews = load_dataset(DATASET)
    parts = {name: tokens(reviews[name], tokenizer) for name in ("train", "test")}
    divided = parts["train"].train_test_split(test_size=0.1, stratify_by_column="label", seed=SEED)
    data = Data(divided["train"], divided["test"], parts["train"], parts["test"])
    sizes = f"{len(data.train)} + {len(data.valid)} reviews (train, valid), {len(data.test)} to test"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"data: {sizes} of {DATASET}; {MODEL} on {device}, threads: {torch.get_num_threads()}", flush=True)
    return data


def tokens(reviews: Dataset, tokenizer: Any) -> Dataset:
    """Truncate texts to the model's maximum length (BERT: 512 tokens)."""
    return reviews.map(
        lambda rows: tokenizer(rows["text"], truncation=True), batched=True, remove_columns="text"
    )


if __name__ == "__main__":
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=42))
    study.optimize(objective, n_trials=20)
    print(f"best accuracy {study.best_value:.4f} with {study.best_params}")
    final(study.best_trial)
