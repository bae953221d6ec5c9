"""A callback for the Hugging Face Trainer: reports each evaluation, and ends a hopeless trial as PRUNED.

The only module of the runtime that needs a package (transformers); nothing else imports it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tuning_trainer.optuna_api.pruned import trial_pruned

if TYPE_CHECKING:
    from collections.abc import Mapping


class MetricNotEvaluatedError(KeyError):
    """The evaluation did not return the metric that is to be reported."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError shows its message quoted


class TuningCallback(TrainerCallback):  # type: ignore[misc]  # transformers is in the image alone
    """Reports a metric of the evaluations during `trainer.train()`; works with a plain optuna.Trial too.

    The step is the epoch with `eval_strategy="epoch"`: trials with other batch sizes are compared after as
    many passes over the data. Else it is the global step, which is a multiple of eval_steps in every trial.

    A hopeless trial's training is stopped as any Trainer's is (`control.should_training_stop`), so that the
    other callbacks end as usual; then `trainer.train()` raises TrialPruned.

    Evaluations before and after the training are not reported.
    """

    def __init__(self, trial: Any, metric: str = "eval_accuracy") -> None:
        """Watch a metric.

        Args:
            trial: the trial; in distributed training the first process alone needs one (else None).
            metric: its name as the evaluation returns it; the prefix `eval_` may be left out.
        """
        self._trial = trial
        self._metric = metric
        self._training = False
        self._pruned_at: int | None = None
        self._evaluated: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Watch from now on."""
        del args, state, control, kwargs
        self._training, self._pruned_at, self._evaluated = True, None, set()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any
    ) -> None:
        """Report the metric; stop the training if the trial is hopeless."""
        del kwargs
        if not self._training or self._pruned_at is not None:
            return
        name = next((name for name in (self._metric, f"eval_{self._metric}") if name in metrics), None)
        if name is None:  # perhaps one of several evaluation datasets: judged when all have been evaluated
            self._evaluated |= set(metrics)
            return
        self._evaluated = set()
        step = round(state.epoch) if _each_epoch(args) else state.global_step
        if self._should_prune(args, state, metrics[name], step):
            self._pruned_at = step
            control.should_training_stop = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fail if the evaluation before this did not return the metric.

        Raises:
            MetricNotEvaluatedError: it did not; says what it returned.
        """
        del args, state, control, kwargs
        self._check_evaluated()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Likewise."""
        del args, state, control, kwargs
        self._check_evaluated()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End a hopeless trial.

        Raises:
            TrialPruned: Optuna's or ours.
            MetricNotEvaluatedError: the last evaluation did not return the metric.
        """
        del args, state, control, kwargs
        self._check_evaluated()
        self._training = False
        if self._pruned_at is not None:
            raise trial_pruned(f"Trial was pruned at step {self._pruned_at}.")

    def _check_evaluated(self) -> None:
        if self._evaluated:
            names = ", ".join(sorted(self._evaluated))
            raise MetricNotEvaluatedError(
                f"The evaluation returned no '{self._metric}'; it returned {names}. "
                "Name one of them, or let the Trainer's compute_metrics return it."
            )

    def _should_prune(self, args: Any, state: Any, value: float, step: int) -> bool:
        """Report in the first process and tell all processes what it has heard: they stop together."""
        prune = False
        if state.is_world_process_zero:
            self._trial.report(float(value), step)
            prune = self._trial.should_prune()
        if args.world_size == 1:
            return prune
        answer = [prune]
        sys.modules["torch.distributed"].broadcast_object_list(answer, src=0)
        return answer[0]


def _each_epoch(args: Any) -> bool:
    return str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "epoch"
