"""Callbacks for the Hugging Face Trainer and Lightning, in the trainer image."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.kit import Kubectl, code, optuna_record, phase, trainer_study

HUGGING_FACE = """
    import tempfile

    import torch
    from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments
    from tuning_trainer.huggingface import TuningCallback

    ROWS = [{"input_ids": torch.tensor([1, 2 + i % 2, 3]), "labels": torch.tensor(i % 2)} for i in range(16)]
    SMALL = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1,
             "intermediate_size": 8}

    def objective(trial):
        quality = trial.suggest_float("quality", 0, 1)
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                BertForSequenceClassification(BertConfig(**SMALL)),
                TrainingArguments(folder, num_train_epochs=3, eval_strategy="epoch", save_strategy="epoch",
                                  load_best_model_at_end=True, report_to="none", use_cpu=True),
                train_dataset=ROWS, eval_dataset=ROWS,
                compute_metrics=lambda prediction: {"quality": quality},
                callbacks=[TuningCallback(trial, "eval_quality")],
            )
            trainer.train()
            return trainer.evaluate()["eval_quality"]
"""

LIGHTNING = """
    import lightning
    import torch
    from optuna_integration import PyTorchLightningPruningCallback

    class Module(lightning.LightningModule):
        def __init__(self, quality):
            super().__init__()
            self.layer, self.quality = torch.nn.Linear(1, 1), quality

        def training_step(self, batch, index):
            return self.layer(batch[0]).mean()

        def validation_step(self, batch, index):
            self.log("val_acc", self.quality, sync_dist=True)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def objective(trial):
        quality = trial.suggest_float("quality", 0, 1)
        rows = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 1)))
        pruning = PyTorchLightningPruningCallback(trial, monitor="val_acc")
        trainer = lightning.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[pruning],
            enable_progress_bar=False, strategy=STRATEGY, devices=DEVICES)
        trainer.fit(Module(quality), rows, rows)
        pruning.check_pruned()
        return trainer.callback_metrics["val_acc"].item()
"""
ALONE = '\n    STRATEGY, DEVICES = "auto", 1\n'
TWO_PROCESSES = '\n    STRATEGY, DEVICES = "ddp_spawn", 2\n'


def two_trials(name: str) -> dict[str, Any]:
    """Return a study with a good trial, and one that is pruned at its first report, in the same pod.

    So the packages are imported once: that takes most of a trial's time.
    """
    return trainer_study(
        name,
        objectives=[{"metric": "quality", "direction": "maximize"}],
        initialTrials=[{"quality": 0.75}, {"quality": 0.25}],
        pruner={"name": "MedianPruner", "args": {"n_startup_trials": 1}},
        maxTrials=2,
        parallelism=1,
        trial={"reusePods": True},
    )


def run(kubectl: Kubectl, *programs: tuple[str, str]) -> None:
    for name, source in programs:
        kubectl.apply(code(f"{name}-code", source), two_trials(name))
    for name, _ in programs:
        status = kubectl.wait(name, phase("Completed", "Failed"))["status"]
        assert status["trials"]["failed"] == 0, kubectl.diagnostics(name)


def states(kubectl: Kubectl, name: str) -> list[tuple[str, list[int]]]:
    with optuna_record(kubectl, name) as record:
        return [(trial.state.name, sorted(trial.intermediate_values)) for trial in record.trials]


@pytest.mark.long
def test_callbacks_of_the_trainer_and_lightning_report_and_prune(kubectl: Kubectl) -> None:
    run(
        kubectl,
        ("huggingface", HUGGING_FACE),
        ("lightning", ALONE + LIGHTNING),
        ("processes", TWO_PROCESSES + LIGHTNING),
    )
    assert states(kubectl, "huggingface") == [("COMPLETE", [1, 2, 3]), ("PRUNED", [1])]
    assert states(kubectl, "lightning") == [("COMPLETE", [0, 1, 2]), ("PRUNED", [0])]
    assert states(kubectl, "processes") == [("COMPLETE", [0, 1, 2]), ("PRUNED", [0])]
