"""Stands between the user's code and Optuna: studies are run by the manifest, not by the pod.

Nothing is imported early: Optuna's functions are replaced when the user's code imports it. Where there is no
Optuna, a stand-in is found last on the module path (also by processes that the user's code spawns). While the
trial's objective runs, all is as in plain Optuna (`Bridge.inside`): it may run small studies of its own.
"""

from __future__ import annotations

import functools
import inspect
import sys
from importlib.abc import Loader, MetaPathFinder
from typing import TYPE_CHECKING, Any, Protocol

from tuning_trainer.console import PACKAGE, say
from tuning_trainer.optuna_api.closed_storages import keep_closed
from tuning_trainer.optuna_api.study import NO_STOP

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

STAND_IN = f"{PACKAGE}/standin"
UNUSED = {
    "enqueue_trial": "study.enqueue_trial is not used: known good points are spec.initialTrials",
    "add_trial": "study.add_trial is not used: trials of another study are spec.warmStart",
    "add_trials": "study.add_trials is not used: trials of another study are spec.warmStart",
    "stop": NO_STOP,
}
"""Methods of the manifest's study that concern more than one trial, and the fields that take their place."""


class Bridge(Protocol):
    """What becomes of a study that the user's code creates and optimizes."""

    inside: bool
    """Whether the objective is running, so that studies are the user's own affair."""
    offline: bool
    """Whether storages that the code names stay closed: the study server keeps the study."""

    def owns(self, study: Any) -> bool:
        """Return whether the study is the manifest's."""

    def create(self, original: Callable[..., Any], asked: dict[str, Any]) -> Any:
        """Return the study for a call of create_study or load_study with these arguments."""

    def optimize(self, study: Any, asked: dict[str, Any]) -> None:
        """Do what `study.optimize` with these arguments means here."""

    def ask(self, study: Any, asked: dict[str, Any]) -> Any:
        """Return the trial for `study.ask` with these arguments."""

    def tell(self, study: Any, asked: dict[str, Any]) -> Any:
        """Do what `study.tell` with these arguments means here."""


def install(bridge: Bridge) -> None:
    """Give the bridge to Optuna when it is imported."""
    sys.meta_path.insert(0, _Finder(bridge))
    sys.path.append(STAND_IN)


class _Finder(MetaPathFinder):
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return Optuna's own spec, with our loader around its own."""
        if name != "optuna":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None and spec.loader is not None), None)
        if spec is not None:
            spec.loader = _Patching(spec.loader, self._bridge)
        return spec


class _Patching(Loader):
    """Optuna's loader, and our functions in its place afterwards."""

    def __init__(self, loader: Any, bridge: Bridge) -> None:
        self._loader = loader
        self._bridge = bridge

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to Optuna's loader, or to Python."""
        create = getattr(self._loader, "create_module", None)
        made: ModuleType | None = create(spec) if create else None
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Run Optuna's own code, then patch it."""
        if hasattr(self._loader, "exec_module"):
            self._loader.exec_module(module)
        else:  # the loader of zip files, up to Python 3.9
            exec(self._loader.get_code(module.__name__), module.__dict__)  # noqa: S102
        if (module.__file__ or "").startswith(STAND_IN):
            say("the image has no optuna: its names are there, its algorithms run in the study server")
        _patch(module, self._bridge)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


def _patch(optuna: ModuleType, bridge: Bridge) -> None:
    for name in ("create_study", "load_study"):
        replaced = _creating(getattr(optuna, name), bridge)
        for module in ("optuna", "optuna.study", "optuna.study.study"):
            if hasattr(sys.modules.get(module), name):
                setattr(sys.modules[module], name, replaced)
    _patch_study(sys.modules["optuna.study"].Study, bridge)
    if bridge.offline:
        keep_closed(bridge)
    for module in ("optuna.samplers", "optuna.samplers.nsgaii", "optuna.pruners"):
        loaded = sys.modules.get(module)
        for kind in list(vars(loaded).values()) if loaded else ():
            if inspect.isclass(kind) and kind.__module__.startswith("optuna."):
                _record_arguments(kind)


def _patch_study(study: type, bridge: Bridge) -> None:
    for name in ("optimize", "ask", "tell"):
        setattr(study, name, _running(getattr(study, name), getattr(bridge, name), bridge))
    for name in UNUSED:
        if hasattr(study, name):
            setattr(study, name, _unused(getattr(study, name), bridge))


def _creating(original: Callable[..., Any], bridge: Bridge) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def create(*args: Any, **kwargs: Any) -> Any:
        if bridge.inside:
            return original(*args, **kwargs)
        return bridge.create(original, dict(signature.bind(*args, **kwargs).arguments))

    return create


def _running(original: Callable[..., Any], ours: Callable[..., Any], bridge: Bridge) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if bridge.inside:
            return original(self, *args, **kwargs)
        asked = dict(signature.bind(self, *args, **kwargs).arguments)
        asked.pop("self")
        return ours(self, asked)

    return run


def _unused(original: Callable[..., Any], bridge: Bridge) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not bridge.owns(self):
            return original(self, *args, **kwargs)
        given = f", here {args[0]}" if original.__name__ == "enqueue_trial" and args else ""
        say(f"{UNUSED[original.__name__]}{given}")
        return None

    return run


def _record_arguments(kind: type) -> None:
    """Let a sampler or pruner remember what it was made with, to compare it with the manifest."""
    original = kind.__init__  # type: ignore[misc]
    signature = inspect.signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_tuning_arguments" not in self.__dict__:
            given = dict(signature.bind(self, *args, **kwargs).arguments)
            self.__dict__["_tuning_arguments"] = {name: given[name] for name in list(given)[1:]}
        original(self, *args, **kwargs)

    kind.__init__ = init  # type: ignore[misc]
