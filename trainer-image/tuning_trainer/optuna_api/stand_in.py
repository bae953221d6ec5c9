"""The part of Optuna that objectives and scripts need, for images without it: names, no algorithms.

The algorithms run in the study server; here `create_study`, samplers and pruners only record their arguments.
"""

# ruff: noqa: ARG002  the signatures are Optuna's

from __future__ import annotations

import copy
import enum
import logging
import sys
import uuid
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

import tuning_trainer
from tuning_trainer.optuna_api import distributions
from tuning_trainer.optuna_api.study import StudyDirection, only_direction
from tuning_trainer.optuna_api.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Collection

NEEDS_OPTUNA = "The objective runs a study of its own, which needs Optuna: install optuna in the image."
VERSION = "5.0.0"
"""The version of Optuna whose interface this follows."""


class TrialState(enum.IntEnum):
    """Optuna's states of a trial."""

    RUNNING = 0
    COMPLETE = 1
    PRUNED = 2
    FAIL = 3
    WAITING = 4

    def is_finished(self) -> bool:
        """Return whether a trial in this state has ended."""
        return self not in (TrialState.RUNNING, TrialState.WAITING)


class FrozenTrial:
    """A finished trial: of the study in the refit, or the pod's own for a callback."""

    def __init__(
        self,
        number: int,
        state: TrialState,
        params: dict[str, Any],
        values: list[float] | None,
        **details: Any,
    ) -> None:
        """Create a trial; the details are those of Optuna's constructor, all of them attributes."""
        self.number = number
        self.state = state
        self.params = params
        self.values = values
        self.system_attrs: dict[str, Any] = {}
        self.__dict__.update(details)

    @property
    def value(self) -> float | None:
        """The only value."""
        return self.values[0] if self.values else None

    @property
    def constraints(self) -> dict[str, float]:
        """The constraint values, by name; a sampler's constraints_func has positions as names."""
        listed = self.system_attrs.get("constraints", ())
        prefix = "constraints:"
        named = {key[len(prefix) :]: v for key, v in self.system_attrs.items() if key.startswith(prefix)}
        return {**{str(position): value for position, value in enumerate(listed)}, **named}

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(_missing(f"optuna.trial.FrozenTrial.{name}"))


class Study:
    """A study of the script; the hook replaces `optimize`, `ask` and `tell`."""

    def __init__(self, **arguments: Any) -> None:
        directions = arguments.get("directions") or [arguments.get("direction") or "minimize"]
        self.study_name = arguments.get("study_name") or f"no-name-{uuid.uuid4()}"
        self.directions = [StudyDirection[str(getattr(one, "name", one)).upper()] for one in directions]
        self.sampler, self.pruner = arguments.get("sampler"), arguments.get("pruner")
        self.user_attrs: dict[str, Any] = {}
        self.metric_names: list[str] | None = None
        self.trials: list[FrozenTrial] = []

    @property
    def direction(self) -> StudyDirection:
        """The direction of the only objective."""
        return only_direction(self.directions)

    @property
    def best_trial(self) -> FrozenTrial:
        """The best trial of the finished study, in the refit."""
        if len(self.directions) > 1:
            raise RuntimeError(
                "A single best trial cannot be retrieved from a multi-objective study. Consider using "
                "Study.best_trials to retrieve a list containing the best trials."
            )
        complete = self.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        feasible = _feasible(complete)
        if not feasible:
            raise ValueError(f"No {'feasible ' if complete else ''}trials are completed yet.")
        return min(feasible, key=self._losses)

    @property
    def best_trials(self) -> list[FrozenTrial]:
        """The trials of the finished study that no other one dominates, in the refit."""
        front: list[FrozenTrial] = []
        complete = self.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
        for trial in sorted(_feasible(complete), key=self._losses):  # only earlier ones may dominate it
            losses = self._losses(trial)
            if not any(_dominates(self._losses(other), losses) for other in front):
                front.append(trial)
        return sorted(front, key=lambda trial: trial.number)

    def _losses(self, trial: FrozenTrial) -> list[float]:
        """Return a complete trial's values, of which smaller ones are better."""
        signs = [-1 if direction is StudyDirection.MAXIMIZE else 1 for direction in self.directions]
        return [sign * value for sign, value in zip(signs, trial.values or ())]

    def get_trials(
        self, deepcopy: bool = True, states: Collection[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of the finished study, in the refit."""
        found = [trial for trial in self.trials if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    @property
    def best_params(self) -> dict[str, Any]:
        """The best trial's parameters."""
        return self.best_trial.params

    @property
    def best_value(self) -> float | None:
        """The best trial's value."""
        return self.best_trial.value

    def set_user_attr(self, key: str, value: Any) -> None:
        """Set an attribute for the rest of this process."""
        self.user_attrs[key] = value

    def set_metric_names(self, metric_names: list[str]) -> None:
        """Name the objectives."""
        self.metric_names = metric_names

    def enqueue_trial(self, params: dict[str, Any], user_attrs: Any = None) -> None:
        """Record a known good point for `init`; in a pod the hook ignores it."""
        del user_attrs
        waiting = FrozenTrial(len(self.trials), TrialState.WAITING, {}, None)
        waiting.system_attrs["fixed_params"] = params
        self.trials.append(waiting)

    def optimize(
        self,
        func: Any,
        n_trials: int | None = None,
        timeout: float | None = None,
        n_jobs: int = 1,
        catch: Any = (),
        callbacks: Any = None,
        gc_after_trial: bool = False,
        show_progress_bar: bool = False,
    ) -> None:
        """Fail: the hook replaces this, except for studies of the objective itself."""
        raise RuntimeError(NEEDS_OPTUNA)

    def stop(self) -> None:
        """Do nothing: the hook replaces this."""

    def ask(self, fixed_distributions: Any = None) -> Any:
        """Fail, like `optimize`."""
        raise RuntimeError(NEEDS_OPTUNA)

    def tell(self, trial: Any, values: Any = None, state: Any = None, skip_if_finished: bool = False) -> Any:
        """Fail, like `optimize`."""
        raise RuntimeError(NEEDS_OPTUNA)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(_missing(f"optuna.Study.{name}"))


def _feasible(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    return [trial for trial in trials if all(value <= 0 for value in trial.constraints.values())]


def _dominates(losses: list[float], others: list[float]) -> bool:
    return losses != others and all(mine <= theirs for mine, theirs in zip(losses, others))


_MEDIAN = ("n_startup_trials", "n_warmup_steps", "interval_steps")
POSITIONAL = {
    "BruteForceSampler": ("seed", "avoid_premature_stop"),
    "GridSampler": ("search_space", "seed"),
    "PartialFixedSampler": ("fixed_params", "base_sampler"),
    "RandomSampler": ("seed",),
    "HyperbandPruner": ("min_resource", "max_resource", "reduction_factor", "bootstrap_count"),
    "MedianPruner": _MEDIAN,
    "PatientPruner": ("wrapped_pruner", "patience", "min_delta"),
    "PercentilePruner": ("percentile", *_MEDIAN),
    "SuccessiveHalvingPruner": (
        "min_resource",
        "reduction_factor",
        "min_early_stopping_rate",
        "bootstrap_count",
    ),
    "ThresholdPruner": ("lower", "upper", "n_warmup_steps", "interval_steps"),
}
"""The names of arguments that Optuna's classes take by position."""


class SamplerOrPruner:
    """A sampler or pruner: its name and its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        names = POSITIONAL.get(type(self).__name__, ())
        unnamed = {str(position): value for position, value in enumerate(args[len(names) :], len(names))}
        self._tuning_arguments = {**dict(zip(names, args)), **unnamed, **kwargs}


def create_study(
    *,
    storage: Any = None,
    sampler: Any = None,
    pruner: Any = None,
    study_name: str | None = None,
    direction: Any = None,
    load_if_exists: bool = False,
    directions: Any = None,
) -> Study:
    """Return a study that records the arguments."""
    del storage, load_if_exists
    return Study(
        sampler=sampler, pruner=pruner, study_name=study_name, direction=direction, directions=directions
    )


def load_study(*, study_name: str | None, storage: Any, sampler: Any = None, pruner: Any = None) -> Study:
    """Return a study that records the arguments."""
    del storage
    return Study(sampler=sampler, pruner=pruner, study_name=study_name)


class _MissingModules(MetaPathFinder):
    """Explains why the rest of Optuna's modules can't be imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> None:
        """Find nothing.

        Raises:
            ModuleNotFoundError: the module is Optuna's.
        """
        del path, target
        if name.startswith(("optuna.", "optuna_integration", "optunahub")):
            raise ModuleNotFoundError(_missing(name), name=name)


def fill(optuna: ModuleType) -> None:
    """Fill a module with the stand-in and register its submodules."""
    sys.meta_path.append(_MissingModules())
    pruned = tuning_trainer.TrialPruned
    study = _module("study", Study=Study, StudyDirection=StudyDirection)
    study.__dict__.update(create_study=create_study, load_study=load_study)
    optuna.__dict__.update(
        __version__=VERSION,
        __getattr__=_absent("optuna"),
        TrialPruned=pruned,
        Trial=Trial,
        Study=Study,
        create_study=create_study,
        load_study=load_study,
        study=study,
        trial=_module("trial", Trial=Trial, BaseTrial=Trial, FrozenTrial=FrozenTrial, TrialState=TrialState),
        exceptions=_module("exceptions", TrialPruned=pruned, OptunaError=Exception),
        samplers=_module("samplers", __getattr__=_named),
        pruners=_module("pruners", __getattr__=_named),
        logging=_module("logging", **_of_logging()),
        distributions=distributions,
    )
    sys.modules["optuna.distributions"] = distributions


def _module(name: str, **names: Any) -> ModuleType:
    full = f"optuna.{name}"
    module = ModuleType(full)
    module.__dict__.update({"__getattr__": _absent(full), **names})
    sys.modules[full] = module
    return module


def _missing(name: str) -> str:
    return (
        f"{name} is not available: this Python has no Optuna, and the trainer runtime's stand-in only has "
        "what a trial needs. Install optuna for it."
    )


def _absent(module: str) -> Any:
    def absent(name: str) -> NoReturn:
        raise AttributeError(_missing(f"{module}.{name}"))

    return absent


def _named(name: str) -> type[SamplerOrPruner]:
    if name.startswith("_"):
        raise AttributeError(name)
    return type(name, (SamplerOrPruner,), {})


def _of_logging() -> dict[str, Any]:
    """Return the names of Optuna's logging, whose logger has a handler of its own."""
    logger, handler = logging.getLogger("optuna"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("[%(levelname)1.1s %(asctime)s] %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    levels = ("CRITICAL", "DEBUG", "ERROR", "FATAL", "INFO", "WARN", "WARNING")
    return {
        **{level: getattr(logging, level) for level in levels},
        "get_logger": logging.getLogger,
        "get_verbosity": logger.getEffectiveLevel,
        "set_verbosity": logger.setLevel,
        "disable_default_handler": lambda: logger.removeHandler(handler),
        "enable_default_handler": lambda: logger.addHandler(handler),
        "disable_propagation": lambda: setattr(logger, "propagate", False),
        "enable_propagation": lambda: setattr(logger, "propagate", True),
    }
