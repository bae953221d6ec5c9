"""examples/bert-imdb with a tiny BERT and forty reviews, with and without code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e import examples
from tests.e2e.kit import Kubectl, optuna_record

REVIEWS = Path(__file__).parent / "data" / "reviews.jsonl"
WRITE_HUB = """
import json, pathlib
from datasets import ClassLabel, Dataset, Features, Value
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

HUB = pathlib.Path("/hub")
reviews = [json.loads(line) for line in pathlib.Path("/reviews/reviews.jsonl").read_text().splitlines()]
features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
for split, rows in {"train": reviews[:30], "test": reviews[30:]}.items():
    Dataset.from_list(rows, features).to_parquet(HUB / f"imdb/plain_text/{split}-00000-of-00001.parquet")

words = BertWordPieceTokenizer()
words.train_from_iterator([review["text"] for review in reviews], vocab_size=500)
(HUB / "bert").mkdir()
words.save_model(str(HUB / "bert"))
BertTokenizerFast.from_pretrained(HUB / "bert", model_max_length=64).save_pretrained(HUB / "bert")
small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
config = BertConfig(vocab_size=words.get_vocab_size(), max_position_embeddings=64, **small)
BertForSequenceClassification(config).save_pretrained(HUB / "bert")
"""
"""Creates two folders as on the Hub: reviews in IMDB's layout, and a tiny untrained BERT."""

READ_A_REVIEW = """
import pathlib
from transformers import pipeline

for folder in sorted(pathlib.Path("/models").iterdir()):
    (prediction,) = pipeline("text-classification", str(folder))("A quiet little film that stays with you.")
    assert 0.5 <= prediction["score"] <= 1, prediction
    print(f"read a review with {folder}")
"""
"""Loads the model with transformers."""

TRIALS = [
    {"learning_rate": 5e-5, "batch_size": 16, "num_train_epochs": 2},
    {"learning_rate": 2e-5, "batch_size": 32, "num_train_epochs": 1},
]
LIGHT = {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"cpu": "1"}}
HUB_MOUNT = {"name": "hub", "mountPath": "/hub", "readOnly": True}
HUB_VOLUME = examples.claimed("hub", "hub")


def reduced(**env: str) -> dict[str, Any]:
    """Return an overlay with two trials and a refit that load the model and the data from folders."""
    volume = examples.pod(volumes=[HUB_VOLUME], securityContext={"fsGroup": 65532})
    overlay = examples.merged(volume, examples.trainer(env=env, resources=LIGHT, volumeMounts=[HUB_MOUNT]))
    return overlay | {
        "maxTrials": 2,
        "parallelism": 2,
        "initialTrials": TRIALS,
        "refit": {"template": overlay["trial"]["template"]},
    }


@pytest.mark.restart_proof
@pytest.mark.timeout(1800)
def test_best_model_is_saved_with_and_without_code(kubectl: Kubectl) -> None:
    fill_hub(kubectl)
    with_code = examples.apply(kubectl, "bert-imdb", reduced(MODEL="/hub/bert", DATASET="/hub/imdb"))
    assert_two_trials_each_epoch_reported(kubectl, with_code)
    log = kubectl.logs_of_trial(with_code, 0)
    assert "27 + 3 reviews (train, valid), 10 to test of /hub/imdb; /hub/bert on cpu, threads: 1" in log

    overlay = reduced(
        MODEL_NAME_OR_PATH="/hub/bert",
        DATASET_NAME="/hub/imdb",
        TRAINING_ARGUMENTS='{"weight_decay": 0.01}',  # without bfloat16, which needs a GPU
    )
    one_pod = {"parallelism": 1, "trial": {"reusePods": True}}  # the packages are imported once
    overlay = examples.merged(overlay, one_pod)
    without = examples.apply(kubectl, "bert-imdb", overlay, "study-no-code.yaml")
    assert_two_trials_each_epoch_reported(kubectl, without)
    models = [refitted(kubectl, name) for name in (with_code, without)]
    assert models == ["/models/bert-imdb", "/models/bert-imdb-no-code"]
    read = examples.run_python(
        kubectl, "read", READ_A_REVIEW, {"/models": examples.claimed("models", "bert-imdb-models")}
    )
    assert all(f"read a review with {model}\n" in read for model in models)


def fill_hub(kubectl: Kubectl) -> None:
    """Create the two folders on a volume, so that nothing is downloaded."""
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "hub"}, "spec": spec}
    data = {REVIEWS.name: REVIEWS.read_text()}
    kubectl.apply(
        claim, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "reviews"}, "data": data}
    )
    reviews = {"name": "reviews", "configMap": {"name": "reviews"}}
    examples.run_python(kubectl, "fill", WRITE_HUB, {"/hub": HUB_VOLUME, "/reviews": reviews})


def assert_two_trials_each_epoch_reported(kubectl: Kubectl, name: str) -> None:
    assert examples.completed(kubectl, name)["progress"] == "2/2"
    with optuna_record(kubectl, name) as record:
        assert [trial.params for trial in record.trials] == TRIALS
        assert [sorted(trial.intermediate_values) for trial in record.trials] == [[1, 2], [1]]
        for trial in record.trials:
            assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]
            assert 0 <= trial.value <= 1


def refitted(kubectl: Kubectl, name: str) -> str:
    """Wait for the refit of the best trial, evaluated on the test reviews; return its model."""
    refit = examples.refitted(kubectl, name)
    assert refit["trial"] == kubectl.study(name)["status"]["best"]["number"]
    assert 0 <= refit["values"][0] <= 1
    return refit["model"]
