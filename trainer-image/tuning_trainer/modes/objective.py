"""Objective mode: imports `module:function` and calls it with the trial."""

from __future__ import annotations

import contextlib
import gc
import importlib
import inspect
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from tuning_trainer.exceptions import failure_of
from tuning_trainer.failure import Failure, TrialFailure
from tuning_trainer.optuna_api import hook
from tuning_trainer.optuna_api.bridge import STUDY_ARGUMENTS, Inside
from tuning_trainer.outcome import Outcome, is_pruned

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tuning_trainer.optuna_api.trial import Trial

OBJECTS_OF_IMPORTS = 100_000
"""While modules are imported, garbage is collected after this many new objects, not after 2,000 or fewer."""


class ImportBridge:
    """Rejects a study that the module runs while it is imported; the objective may run studies of its own."""

    offline = True

    def __init__(self) -> None:
        self.inside = Inside()

    def owns(self, study: Any) -> bool:
        """Return False: the module's studies are its own."""
        del study
        return False

    def create(self, original: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Return a study in memory: creating one does no harm, but the pod may not reach its storage."""
        del original
        kept = {name: arguments[name] for name in STUDY_ARGUMENTS if arguments.get(name)}
        with self.inside:
            return sys.modules["optuna"].create_study(**kept)

    def optimize(self, study: Any, arguments: dict[str, Any]) -> NoReturn:
        """Reject running a whole study in the pod of one trial."""
        del study, arguments
        raise _failure(
            "Objective",
            "The module runs a study (optimize, ask or tell) when it is imported.",
            "Move it under `if __name__ == '__main__':`, or set trial.script to run the whole script.",
        )

    ask = tell = optimize


def run_objective(
    target: str, trial: Trial, metrics: list[str], judge: Callable[[Any, list[str]], Outcome]
) -> Outcome:
    """Return the outcome of calling the objective with the trial; `judge` interprets what it returns.

    Raises:
        TrialFailure: there is no such objective, or it doesn't take a trial.
        BaseException: whatever the objective raises.
    """
    imported = import_objective(target)
    if imported.error is not None:
        raise imported.error
    imported.bridge.inside.everywhere = True
    return judge(imported.objective(trial), metrics)


class Imported(NamedTuple):
    """An objective, or why it can't be imported."""

    bridge: ImportBridge
    objective: Callable[[Trial], Any]
    error: BaseException | None = None


@lru_cache(maxsize=1)
def import_objective(target: str) -> Imported:
    """Import an objective once; a worker does so for all its trials, which are forked from it."""
    bridge = ImportBridge()
    hook.install(bridge)
    try:
        return Imported(bridge, load_objective(target))
    except BaseException as error:  # noqa: BLE001  it is raised in the trial
        return Imported(bridge, lambda _: None, error)


def prepare_path(source: str | None) -> None:
    """Put the trial's source, then the working directory, first on the module path."""
    for folder in (os.getcwd(), source):  # noqa: PTH109  as `python` itself puts it
        if folder:
            sys.path[:] = [folder, *(entry for entry in sys.path if entry != folder)]
    importlib.invalidate_caches()


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """Collect garbage less often: it takes a tenth of the time to import Transformers, and frees little."""
    before = gc.get_threshold()
    gc.set_threshold(OBJECTS_OF_IMPORTS, *before[1:])
    try:
        yield
    finally:
        if gc.get_threshold()[0] == OBJECTS_OF_IMPORTS:  # otherwise, a module has set its own
            gc.set_threshold(*before)


def load_objective(target: str) -> Callable[[Trial], Any]:
    """Return the function that `module:function` names.

    Raises:
        TrialFailure: it can't be imported or called with a trial; the message says what to do.
    """
    module_name, _, path = target.partition(":")
    if not module_name or not path:
        raise _failure(
            "Objective",
            f"'{target}' is not in the form module:function.",
            "Correct trial.objective, for example train:objective.",
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
        with fewer_collections():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise _failure(
                "ModuleNotFound",
                f"Module '{name}' not found {_searched()}.",
                "Correct trial.objective or trial.source.",
            ) from None
        raise TrialFailure(failure_of(error)) from None
    except TrialFailure:
        raise
    except BaseException as error:
        if is_pruned(error):
            raise
        raise TrialFailure(
            failure_of(error)._replace(remedy=f"Importing the module '{name}' failed: fix its code.")
        ) from error


def _searched() -> str:
    """Describe where modules are searched for, and which ones the first folders have."""
    places = []
    for folder in dict.fromkeys(sys.path[:2]):
        path = Path(folder)
        names = sorted(file.name for file in path.glob("*.py"))[:10] if path.is_dir() else []
        places.append(f"{folder} ({', '.join(names) or 'no .py files'})")
    return f"in {' or '.join(places)} or among the image's packages"


def _missing(module: str, path: str, found: Any) -> TrialFailure:
    functions = sorted(name for name, value in vars(found).items() if inspect.isfunction(value))[:10]
    has = f"it defines {', '.join(functions)}" if functions else "it defines no functions"
    return _failure("Objective", f"The module '{module}' has no '{path}'; {has}.", "Correct trial.objective.")


def _check_callable(target: str, found: Any) -> None:
    if inspect.isclass(found):
        raise _failure(
            "Objective",
            f"'{target}' is a class.",
            f"Create an instance of it in the module, for example `objective = {found.__name__}(...)`.",
        )
    if not callable(found):
        raise _failure(
            "Objective",
            f"'{target}' is of type {type(found).__name__}, not a function.",
            "Correct trial.objective.",
        )
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some C functions have no signature: the call will show
        return
    try:
        signature.bind(None)
    except TypeError:
        raise _failure(
            "Objective",
            f"'{target}' must take one argument, the trial, but its signature is {signature}.",
            "Bind the other arguments with functools.partial or a lambda.",
        ) from None


def _failure(category: str, message: str, remedy: str) -> TrialFailure:
    return TrialFailure(Failure(category, message, remedy))
