"""Typical Optuna scripts, unmodified, in the trainer image, and their refits."""

from __future__ import annotations

import pytest

from tests.e2e.examples import completed, refitted
from tests.e2e.kit import Kubectl, code, optuna_record, trainer_study

SCIKIT_LEARN = """
    import joblib
    import optuna
    from optuna.study import MaxTrialsCallback
    from sklearn.datasets import load_digits
    from sklearn.linear_model import SGDClassifier
    from sklearn.model_selection import train_test_split

    X, y = load_digits(return_X_y=True)
    train_x, valid_x, train_y, valid_y = train_test_split(X / 16, y, random_state=0)

    def fit(alpha, trial=None):
        model = SGDClassifier(alpha=alpha, random_state=0)
        for step in range(3):
            model.partial_fit(train_x, train_y, classes=range(10))
            if trial is not None:
                trial.report(model.score(valid_x, valid_y), step)
                if trial.should_prune():
                    raise optuna.TrialPruned()
        return model

    def objective(trial):
        return fit(trial.suggest_float("alpha", 1e-5, 100, log=True), trial).score(valid_x, valid_y)

    if __name__ == "__main__":
        storage = optuna.storages.RDBStorage("sqlite:////nowhere/study.db", heartbeat_interval=60)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
        study = optuna.create_study(storage=storage, study_name="digits", load_if_exists=True,
                                    direction="maximize", pruner=pruner)
        study.enqueue_trial({"alpha": 1e-4})
        study.optimize(objective, n_trials=50, callbacks=[MaxTrialsCallback(50)], show_progress_bar=True)
        print(study.trials_dataframe())
        joblib.dump(fit(**study.best_params), "/tmp/model.joblib")
        study.set_user_attr("model", "/tmp/model.joblib")
"""

HUGGING_FACE = """
    import os

    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

    ROWS = [{"input_ids": torch.tensor([1, 2 + i % 2, 3]), "labels": torch.tensor(i % 2)} for i in range(16)]
    CONFIG = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                        intermediate_size=8)
    os.chdir("/tmp")
    trainer = Trainer(
        model_init=lambda: BertForSequenceClassification(CONFIG),
        args=TrainingArguments("out", num_train_epochs=2, eval_strategy="epoch", save_strategy="no",
                               report_to="none", use_cpu=True),
        train_dataset=ROWS, eval_dataset=ROWS,
    )
    best = trainer.hyperparameter_search(
        direction="minimize", backend="optuna", n_trials=50,
        hp_space=lambda trial: {"learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)})
    for name, value in best.hyperparameters.items():
        setattr(trainer.args, name, value)
    trainer.train()
    trainer.save_model("best-model")
"""


def script(name: str, direction: str, trials: int, **spec: object) -> dict[str, object]:
    """Return a study with a refit, for a script that suggests its own parameters."""
    manifest = trainer_study(
        name,
        objectives=[{"metric": "score", "direction": direction}],
        maxTrials=trials,
        parallelism=1,
        refit={},
        **spec,
    )
    del manifest["spec"]["sampler"], manifest["spec"]["trial"]["objective"]
    manifest["spec"]["trial"]["script"] = "train.py"
    return manifest


@pytest.mark.long
def test_scripts_with_scikit_learn_and_with_hyperparameter_search_of_the_trainer(kubectl: Kubectl) -> None:
    kubectl.apply(
        code("sklearn-code", SCIKIT_LEARN),
        script(
            "sklearn",
            "maximize",
            2,
            initialTrials=[{"alpha": 1e-4}, {"alpha": 100}],
            pruner={"name": "MedianPruner", "args": {"n_startup_trials": 1}},
        ),
        code("search-code", HUGGING_FACE),
        script("search", "minimize", 1),
    )
    for name in ("sklearn", "search"):
        completed(kubectl, name)
    with optuna_record(kubectl, "sklearn") as record:
        states = [(trial.state.name, sorted(trial.intermediate_values)) for trial in record.trials]
        assert states == [("COMPLETE", [0, 1, 2]), ("PRUNED", [0])]
    with optuna_record(kubectl, "search") as record:
        reported = sorted(record.trials[0].intermediate_values)
        assert reported == [2, 4], "the Trainer reports each evaluation, by its global step"
    assert refitted(kubectl, "sklearn")["model"] == "/tmp/model.joblib"
    refitted(kubectl, "search")
    assert "study is finished: optimize returns at once" in kubectl.logs_of_job("search-refit")
