"""Objective mode: imports `module:function` and calls it with the trial."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from tuning_trainer.failure import Failure, TrialFailure, failure_of
from tuning_trainer.optuna_api import optuna_hook
from tuning_trainer.outcome import Outcome, is_pruned

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_trainer.optuna_api.trial import Trial


class ImportBridge:
    """A study that the module runs while it is imported is a mistake; one of the objective's own is not."""

    offline = False

    def __init__(self) -> None:
        self.inside = False

    def owns(self, study: Any) -> bool:
        """Return that no study is the manifest's: they are the module's own."""
        del study
        return False

    def create(self, original: Callable[..., Any], asked: dict[str, Any]) -> Any:
        """Create the study as asked: to create one does no harm."""
        return original(**asked)

    def optimize(self, study: Any, asked: dict[str, Any]) -> NoReturn:
        """Refuse to run a whole study in a trial's pod."""
        del study, asked
        raise _failure(
            "Objective",
            "The module runs a study (optimize, ask or tell) when it is imported.",
            "Put that under `if __name__ == '__main__':`, or run the whole script with trial.script.",
        )

    ask = tell = optimize


def run_objective(
    target: str, trial: Trial, metrics: list[str], judge: Callable[[Any, list[str]], Outcome]
) -> Outcome:
    """Return the outcome of calling the objective with the trial; `judge` reads what it returns.

    Raises:
        TrialFailure: there is no such objective, or it does not take a trial.
        BaseException: whatever the objective raises.
    """
    bridge = ImportBridge()
    optuna_hook.install(bridge)
    objective = load_objective(target)
    bridge.inside = True
    return judge(objective(trial), metrics)


def prepare_path(source: str | None) -> None:
    """Put the trial's source, then the working directory, first on the module path."""
    for folder in (os.getcwd(), source):  # noqa: PTH109  as `python` itself puts it
        if folder:
            sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    importlib.invalidate_caches()


def load_objective(target: str) -> Callable[[Trial], Any]:
    """Return the function that `module:function` names.

    Raises:
        TrialFailure: it cannot be had or cannot be called with a trial; the message says what to do.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise _failure(
            "Objective", f"'{target}' is not of the form module:function.", "Mend trial.objective."
        )
    found: Any = _import(module_name)
    for name in path.split("."):
        if not hasattr(found, name):
            raise _missing(module_name, path, found)
        found = getattr(found, name)
    _check_callable(target, found)
    return found  # type: ignore[no-any-return]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise _failure(
                "ModuleNotFound",
                f"There is no module '{name}' {_looked()}.",
                "Mend trial.objective or trial.source.",
            ) from None
        raise TrialFailure(
            failure_of(error)._replace(
                category="ModuleNotFound",
                remedy=f"Use an image that has '{error.name}', or give its code with trial.source.",
            )
        ) from None
    except TrialFailure:
        raise
    except BaseException as error:
        if is_pruned(error):
            raise
        raise TrialFailure(
            failure_of(error)._replace(remedy=f"Importing the module '{name}' failed: mend its code.")
        ) from error


def _looked() -> str:
    """Say where modules were looked for, and which the first folders have."""
    places = []
    for folder in dict.fromkeys(sys.path[:2]):
        here = Path(folder)
        names = sorted(file.name for file in here.glob("*.py"))[:10] if here.is_dir() else []
        places.append(f"{folder} ({', '.join(names) or 'no .py file'})")
    return f"in {' or '.join(places)} or in the image's packages"


def _missing(module: str, path: str, found: Any) -> TrialFailure:
    functions = sorted(name for name, value in vars(found).items() if inspect.isfunction(value))[:10]
    has = f"it defines {', '.join(functions)}" if functions else "it defines no function"
    return _failure("Objective", f"The module '{module}' has no '{path}'; {has}.", "Mend trial.objective.")


def _check_callable(target: str, found: Any) -> None:
    if inspect.isclass(found):
        raise _failure(
            "Objective",
            f"'{target}' is a class.",
            f"Name an instance of it, for example `objective = {found.__name__}(...)` in the module.",
        )
    if not callable(found):
        raise _failure(
            "Objective", f"'{target}' is a {type(found).__name__}, not a function.", "Mend trial.objective."
        )
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some C functions tell no signature: calling will show
        return
    try:
        signature.bind(None)
    except TypeError:
        raise _failure(
            "Objective",
            f"'{target}' is called with one argument, the trial, but takes {signature}.",
            "An objective takes the trial alone; bind other arguments with functools.partial or a lambda.",
        ) from None


def _failure(category: str, message: str, remedy: str) -> TrialFailure:
    return TrialFailure(Failure(category, message, remedy))
