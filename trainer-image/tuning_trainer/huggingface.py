"""A callback for the Hugging Face Trainer: reports each evaluation and prunes unpromising trials.

The only module of the runtime that needs a package, transformers; no other module imports it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from tuning_trainer.outcome import trial_pruned

if TYPE_CHECKING:
    from collections.abc import Mapping


class MetricNotEvaluatedError(KeyError):
    """The evaluation did not return the metric that should be reported."""

    def __str__(self) -> str:
        return str(self.args[0])  # a KeyError would show its message in quotes


class TuningCallback(TrainerCallback):  # type: ignore[misc]  # transformers is only in the image
    """Reports a metric of the evaluations during `trainer.train()`; also works with a plain optuna.Trial.

    With `eval_strategy="epoch"` the step is the epoch, so that trials with different batch sizes are compared
    after the same number of passes over the data. Otherwise it is the global step, a multiple of eval_steps.

    An unpromising trial's training is stopped with `control.should_training_stop`, so that other callbacks
    end as usual; then `trainer.train()` raises TrialPruned.

    Evaluations before and after the training are not reported.
    """

    def __init__(self, trial: Any, metric: str = "eval_accuracy") -> None:
        """Create the callback.

        Args:
            trial: the trial; in distributed training only the first process needs one, the others pass None.
            metric: the metric's name as the evaluation returns it; the prefix `eval_` may be omitted.
        """
        self._trial = trial
        self._metric = metric
        self._training = False
        self._pruned_at: int | None = None
        self._evaluated: set[str] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start reporting."""
        del args, state, control, kwargs
        self._training, self._pruned_at, self._evaluated = True, None, set()

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any
    ) -> None:
        """Report the metric; stop the training if the trial is unpromising."""
        del kwargs
        if not self._training or self._pruned_at is not None:
            return
        name = next((name for name in (self._metric, f"eval_{self._metric}") if name in metrics), None)
        if name is None:  # may be one of several evaluation datasets: checked when all have been evaluated
            self._evaluated |= set(metrics)
            return
        self._evaluated = set()
        each_epoch = str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "epoch"
        step = round(state.epoch) if each_epoch else state.global_step
        if self._should_prune(args, state, metrics[name], step):
            self._pruned_at = step
            control.should_training_stop = True

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Fail if the last evaluation did not return the metric.

        Raises:
            MetricNotEvaluatedError: it did not; the message lists what it returned.
        """
        del args, state, control, kwargs
        self._check_evaluated()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do the same."""
        del args, state, control, kwargs
        self._check_evaluated()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End an unpromising trial.

        Raises:
            TrialPruned: Optuna's where Optuna is loaded, otherwise the runtime's.
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
                f"The evaluation did not return '{self._metric}'; it returned {names}. "
                "Use one of these, or return the metric from the Trainer's compute_metrics."
            )

    def _should_prune(self, args: Any, state: Any, value: float, step: int) -> bool:
        """Report in the first process and share the answer with all processes, so that they stop together."""
        prune = False
        if state.is_world_process_zero:
            self._trial.report(float(value), step)
            prune = self._trial.should_prune()
        if args.world_size == 1:
            return prune
        answer = [prune]
        sys.modules["torch.distributed"].broadcast_object_list(answer, src=0)
        return answer[0]
