"""Code that writes to its working directory and the usual caches in the trainer image, with any user ID."""

from __future__ import annotations

from typing import Any

import pytest

from dev.demo.system import TRAINER
from tests.e2e.examples import completed, refitted
from tests.e2e.kit import GPU, Kubectl, code, trainer_study

RESULTS = """
    import argparse
    import json
    import os

    import joblib
    import optuna
    from sklearn.datasets import load_wine
    from sklearn.model_selection import cross_val_score
    from sklearn.tree import DecisionTreeClassifier

    X, y = load_wine(return_X_y=True)

    def objective(trial):
        tree = DecisionTreeClassifier(max_depth=trial.suggest_int("max_depth", 1, 8), random_state=0)
        return cross_val_score(tree, X, y, cv=3).mean()

    if __name__ == "__main__":
        parser = argparse.ArgumentParser("tune")
        parser.add_argument("--out", default="results")
        args = parser.parse_args()
        os.makedirs(args.out, exist_ok=True)
        study = optuna.create_study(direction="maximize")
        study.optimize(objective, n_trials=4)
        study.trials_dataframe().to_csv(f"{args.out}/history.csv", index=False)
        with open(f"{args.out}/best.json", "w") as file:
            json.dump(study.best_params, file)
        optuna.visualization.plot_optimization_history(study).write_html(f"{args.out}/history.html")
        joblib.dump(study, f"{args.out}/study.pkl")
        print("wrote", sorted(os.listdir(args.out)))
"""

LIGHTNING = """
    import lightning
    import optuna
    import torch

    class Module(lightning.LightningModule):
        def __init__(self, rate):
            super().__init__()
            self.layer, self.rate = torch.nn.Linear(1, 1), rate

        def training_step(self, batch, index):
            loss = self.layer(batch[0]).mean()
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, index):
            self.log("score", self.rate)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.rate)

    def objective(trial):
        rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)))
        trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", log_every_n_steps=1)
        trainer.fit(Module(trial.suggest_float("rate", 0.01, 0.1)), rows, rows)
        print("logs in", trainer.logger.log_dir, "checkpoint", trainer.checkpoint_callback.best_model_path)
        return trainer.callback_metrics["score"].item()

    study = optuna.create_study(direction="maximize")
    study.optimize(objective, n_trials=10)
"""

HUGGING_FACE = """
    import os
    import pathlib

    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    ROWS = [{"input_ids": torch.tensor([1, 2 + i % 2, 3]), "labels": torch.tensor(i % 2)} for i in range(16)]
    SMALL = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 8}

    def objective(trial):
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        arguments = TrainingArguments(output_dir="./results", num_train_epochs=1, learning_rate=rate,
                                      eval_strategy="epoch", save_strategy="epoch", use_cpu=True)
        trainer = Trainer(BertForSequenceClassification(BertConfig(**SMALL)), arguments,
                          train_dataset=ROWS, eval_dataset=ROWS)
        trainer.train()
        trainer.save_model("model")
        for folder in (os.path.expanduser("~"), os.environ["HF_HOME"], os.environ["XDG_CACHE_HOME"],
                       os.environ["MPLCONFIGDIR"], os.environ["TORCH_HOME"]):
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            pathlib.Path(folder, f"of-{os.getuid()}").write_text("written")
        print("saved", sorted(os.listdir(".")), "as user", os.getuid())
        return -trainer.evaluate()["eval_loss"]
"""


def one_trial(name: str, user: int | None = None, **trial: str) -> dict[str, Any]:
    """A study of one trial in the trainer image, in its own working directory; `user` sets a user ID."""
    manifest = trainer_study(
        name,
        objectives=[{"metric": "score", "direction": "maximize"}],
        maxTrials=1,
        parallelism=1,
    )
    spec = manifest["spec"]
    del spec["sampler"], spec["trial"]["objective"]
    spec["trial"] |= trial
    if user is not None:
        spec["trial"]["template"]["spec"]["securityContext"] = {
            "runAsUser": user,
            "runAsGroup": 0,
        }  # as OpenShift does
    return manifest


def without_template(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same study in the operator's trainer image, which is this one."""
    del manifest["spec"]["trial"]["template"]
    return manifest


@pytest.mark.long
def test_results_logs_and_checkpoints_are_written_to_the_working_directory(kubectl: Kubectl) -> None:
    results = one_trial("results", script="train.py")
    results["spec"]["refit"] = {}
    kubectl.apply(
        code("results-code", RESULTS),
        results,
        code("lightning-code", LIGHTNING),
        without_template(one_trial("lightning", script="train.py")),
        code("arbitrary-code", HUGGING_FACE),
        one_trial("arbitrary", user=1000650000, objective="train:objective"),
    )
    for name in ("results", "lightning", "arbitrary"):
        completed(kubectl, name)
    [container] = kubectl.json("get", "job", "lightning-0")["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["resources"]["limits"]) == (TRAINER, {GPU: "1"})
    assert "logs in /workspace/lightning_logs/version_0" in kubectl.logs_of_trial("lightning", 0)
    saved = kubectl.logs_of_trial("arbitrary", 0)
    assert "'model'" in saved
    assert "'results'" in saved
    assert "as user 1000650000" in saved
    refitted(kubectl, "results")
    files = "wrote ['best.json', 'history.csv', 'history.html', 'study.pkl']"
    assert files in kubectl.logs_of_job("results-refit")
