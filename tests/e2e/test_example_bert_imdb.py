"""examples/bert-imdb with a tiny BERT and forty reviews: the Trainer with TuningCallback, and no code."""

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
"""Two folders as the hub has them: reviews in IMDB's layout, and a BERT of two small layers, untrained."""

TRIALS = [
    {"learning_rate": 5e-5, "batch_size": 16, "num_train_epochs": 2},
    {"learning_rate": 2e-5, "batch_size": 32, "num_train_epochs": 1},
]
LIGHT = {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"cpu": "1"}}
HUB_MOUNT = {"name": "hub", "mountPath": "/hub", "readOnly": True}
HUB_VOLUME = {"name": "hub", "persistentVolumeClaim": {"claimName": "hub"}}


def reduced(**env: str) -> dict[str, Any]:
    """Two trials, and model and data from folders; the refit likewise."""
    volume = examples.pod(volumes=[HUB_VOLUME], securityContext={"fsGroup": 65532})
    overlay = examples.merged(volume, examples.trainer(env=env, resources=LIGHT, volumeMounts=[HUB_MOUNT]))
    return overlay | {
        "maxTrials": 2,
        "parallelism": 2,
        "initialTrials": TRIALS,
        "refit": {"template": overlay["trial"]["template"]},
    }


@pytest.mark.timeout(600)
def test_the_trainer_is_tuned_and_the_best_model_is_kept(kubectl: Kubectl) -> None:
    fill_hub(kubectl)
    name = examples.apply(kubectl, "bert-imdb", reduced(MODEL="/hub/bert", DATASET="/hub/imdb"))
    best = examples.completed(kubectl, name)["best"]
    log = kubectl.logs_of_trial(name, 0)
    assert "27 + 3 reviews (train, valid), 10 to test of /hub/imdb; /hub/bert on cpu, threads: 1" in log
    assert_each_epoch_is_reported(kubectl, name)
    assert_the_model_is_kept(kubectl, name, best["number"])


@pytest.mark.timeout(600)
def test_no_code_at_all(kubectl: Kubectl) -> None:
    fill_hub(kubectl)
    overlay = reduced(
        MODEL_NAME_OR_PATH="/hub/bert",
        DATASET_NAME="/hub/imdb",
        TRAINING_ARGUMENTS='{"weight_decay": 0.01}',  # bfloat16 is for GPUs
    )
    name = examples.apply(kubectl, "bert-imdb", overlay, "study-no-code.yaml")
    best = examples.completed(kubectl, name)["best"]
    assert_each_epoch_is_reported(kubectl, name)
    assert_the_model_is_kept(kubectl, name, best["number"])


def fill_hub(kubectl: Kubectl) -> None:
    """Put the two folders on a volume, since nothing can be downloaded here."""
    spec: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "hub"}, "spec": spec}
    reviews = {"name": "reviews", "configMap": {"name": "reviews"}}
    run_to_end(
        kubectl,
        "fill",
        WRITE_HUB,
        {"/hub": HUB_VOLUME, "/reviews": reviews},
        claim,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "reviews"},
            "data": {REVIEWS.name: REVIEWS.read_text()},
        },
    )


def run_to_end(
    kubectl: Kubectl, name: str, code: str, volumes: dict[str, dict[str, Any]], *others: dict[str, Any]
) -> str:
    """Run Python code in a pod of the example's image, with volumes at these paths; return its output."""
    trial = examples.load("bert-imdb")["spec"]["trial"]["template"]["spec"]
    mounts = [{"name": volume["name"], "mountPath": path} for path, volume in volumes.items()]
    container = {
        "name": "main",
        "image": trial["containers"][0]["image"],
        "command": ["python3", "-c", code],
        "volumeMounts": mounts,
    }
    pod = {
        "restartPolicy": "Never",
        "securityContext": {"fsGroup": 65532},
        "containers": [container],
        "volumes": list(volumes.values()),
    }
    kubectl.apply(*others, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": pod})
    succeeded = "--for=jsonpath={.status.phase}=Succeeded"
    kubectl.run("wait", succeeded, f"pod/{name}", "--timeout=150s", timeout=180)
    return kubectl.run("logs", name)


def assert_each_epoch_is_reported(kubectl: Kubectl, name: str) -> None:
    with optuna_record(kubectl, name) as record:
        assert [trial.params for trial in record.trials] == TRIALS
        assert [sorted(trial.intermediate_values) for trial in record.trials] == [[1, 2], [1]]
        for trial in record.trials:
            assert trial.value == trial.intermediate_values[max(trial.intermediate_values)]
            assert 0 <= trial.value <= 1


def assert_the_model_is_kept(kubectl: Kubectl, name: str, trial: int) -> None:
    """In the folder that status names: a model that reads a review, by transformers' own loader."""
    refit = examples.refitted(kubectl, name)
    assert refit["trial"] == trial
    assert refit["model"] == f"/models/{name}"
    assert 0 <= refit["values"][0] <= 1
    code = f"""
from transformers import pipeline
print(pipeline("text-classification", "{refit["model"]}")("A quiet little film that stays with you."))
"""
    models = {"name": "models", "persistentVolumeClaim": {"claimName": "bert-imdb-models"}}
    assert "'score': 0." in run_to_end(kubectl, "read", code, {"/models": models})
