"""The Trainer's callback with a plain Optuna trial; tests/e2e/test_callbacks.py has the real Trainer."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import optuna
import pytest


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The callback's module, where transformers is nothing but the name of its base class."""
    transformers = ModuleType("transformers")
    transformers.TrainerCallback = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", transformers)
    yield importlib.import_module("tuning_trainer.huggingface")
    sys.modules.pop("tuning_trainer.huggingface")


class Training:
    """What the Trainer calls, in its order."""

    def __init__(
        self, callback: Any, eval_strategy: str = "epoch", rank: int = 0, world_size: int = 1
    ) -> None:
        self.callback = callback
        self.args = SimpleNamespace(eval_strategy=eval_strategy, world_size=world_size)
        self.state = SimpleNamespace(epoch=0.0, global_step=0, is_world_process_zero=rank == 0)
        self.control = SimpleNamespace(should_training_stop=False)

    def happens(self, event: str, **more: Any) -> None:
        getattr(self.callback, f"on_{event}")(self.args, self.state, self.control, **more)

    def run(self, *evaluations: dict[str, float]) -> None:
        """Train for as many epochs of 7 steps as there are evaluations."""
        self.happens("train_begin")
        for metrics in evaluations:
            self.happens("epoch_begin")
            self.happens("step_begin")
            self.state.epoch += 0.9999999
            self.state.global_step += 7
            self.happens("evaluate", metrics=metrics)
            if self.control.should_training_stop:
                break
        self.happens("train_end")


def study_that_prunes_below(value: float) -> optuna.Study:
    pruner = optuna.pruners.ThresholdPruner(lower=value)
    return optuna.create_study(direction="maximize", pruner=pruner)


@pytest.mark.parametrize(("strategy", "steps"), [("epoch", [1, 2]), ("steps", [7, 14])])
@pytest.mark.parametrize("name", ["eval_accuracy", "accuracy"])
def test_the_step_is_the_epoch_or_the_global_step(
    module: Any, strategy: str, steps: list[int], name: str
) -> None:
    trial = study_that_prunes_below(0).ask()
    Training(module.TuningCallback(trial, name), strategy).run(
        {"eval_accuracy": 0.5}, {"eval_accuracy": 0.75}
    )
    assert trial.study.trials[0].intermediate_values == dict(zip(steps, [0.5, 0.75], strict=True))


def test_an_unpromising_training_stops_and_then_raises_optunas_pruned(module: Any) -> None:
    trial = study_that_prunes_below(0.6).ask()
    training = Training(module.TuningCallback(trial))
    with pytest.raises(optuna.TrialPruned, match="at step 2"):
        training.run({"eval_accuracy": 0.7}, {"eval_accuracy": 0.5}, {"eval_accuracy": 0.9})
    assert training.control.should_training_stop
    assert list(trial.study.trials[0].intermediate_values) == [1, 2]


def test_a_metric_that_is_not_evaluated_is_an_error_that_lists_the_others(module: Any) -> None:
    training = Training(module.TuningCallback(study_that_prunes_below(0).ask()))
    with pytest.raises(module.MetricNotEvaluatedError) as raised:
        training.run({"eval_loss": 0.5, "eval_f1": 0.5}, {"eval_loss": 0.5})
    assert "did not return 'eval_accuracy'; it returned eval_f1, eval_loss. Use one" in str(raised.value)


def test_it_is_an_error_at_the_end_too(module: Any) -> None:
    with pytest.raises(module.MetricNotEvaluatedError):
        Training(module.TuningCallback(study_that_prunes_below(0).ask())).run({"eval_loss": 0.5})


def test_one_of_several_evaluation_datasets_has_the_metric(module: Any) -> None:
    trial = study_that_prunes_below(0).ask()
    training = Training(module.TuningCallback(trial, "eval_b_accuracy"))
    training.happens("train_begin")
    training.happens("evaluate", metrics={"eval_a_accuracy": 0.25})
    training.happens("evaluate", metrics={"eval_b_accuracy": 0.5})
    training.happens("epoch_begin")
    assert list(trial.study.trials[0].intermediate_values.values()) == [0.5]


def test_evaluations_before_and_after_the_training_are_not_reported(module: Any) -> None:
    trial = study_that_prunes_below(0).ask()
    training = Training(module.TuningCallback(trial))
    training.happens("evaluate", metrics={"eval_accuracy": 0.25})
    training.run({"eval_accuracy": 0.5})
    training.happens("evaluate", metrics={"test_accuracy": 0.75})
    assert trial.study.trials[0].intermediate_values == {1: 0.5}


def test_processes_without_a_trial_hear_of_it_from_the_first(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    distributed = ModuleType("torch.distributed")
    distributed.broadcast_object_list = lambda answer, src: answer.__setitem__(0, True)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.distributed", distributed)
    training = Training(module.TuningCallback(None), rank=1, world_size=2)
    with pytest.raises(optuna.TrialPruned):
        training.run({"eval_accuracy": 0.5}, {"eval_accuracy": 0.5})
    assert training.control.should_training_stop
