"""Replaces Optuna's functions when the user's code imports Optuna: the manifest runs the study, not the pod.

In an image without Optuna, a stand-in is found last on the module path, also by spawned processes. While the
objective runs (`Bridge.inside`), everything is plain Optuna: it may run studies of its own.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.util import module_from_spec
from typing import TYPE_CHECKING, Any

from tuning_trainer.log import PACKAGE, log
from tuning_trainer.optuna_api.bridge import IGNORED
from tuning_trainer.optuna_api.choice import is_skipped, unknown
from tuning_trainer.optuna_api.storages import replace_storages

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from tuning_trainer.optuna_api.bridge import Bridge

STAND_IN = f"{PACKAGE}/standin"
SPAWNED = f"{PACKAGE}/spawned"
"""First on the module path in script mode; only processes that the script spawns find Optuna there."""
NESTED = "_tuning_nested"
"""An attribute of the studies that a script creates between ask and tell: they are plain Optuna."""
RESULTS = ("best_trial", "best_trials", "best_params", "best_value", "trials")
RESULT_METHODS = ("get_trials", "trials_dataframe")


def install(bridge: Bridge) -> None:
    """Connect the bridge to Optuna, as soon as the user's code imports it if it is not imported yet."""
    bridge.inside.pass_on_to_threads()
    if "optuna" in sys.modules:
        _patch(sys.modules["optuna"], bridge)
        return
    sys.meta_path.insert(0, _Finder(bridge))
    if STAND_IN not in sys.path:
        sys.path.append(STAND_IN)


def load_in_spawned_process(bridge: Bridge | None) -> None:
    """Load Optuna in place of the module that is being imported; without a bridge, it is not patched."""
    if bridge is not None:
        bridge.inside.pass_on_to_threads()
    spec = _find_optuna(sys.meta_path, bridge)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("No module named 'optuna'", name="optuna")
    module = module_from_spec(spec)
    sys.modules["optuna"] = module
    spec.loader.exec_module(module)


def _find_optuna(finders: Sequence[Any], bridge: Bridge | None) -> ModuleSpec | None:
    """Return the spec of Optuna, or else of the stand-in, with a loader that patches it."""
    places = [folder for folder in sys.path if folder != SPAWNED]
    found = (finder.find_spec("optuna", places) for finder in finders)
    spec = next((spec for spec in found if spec is not None and spec.loader is not None), None)
    if spec is not None:
        spec.loader = _Patching(spec.loader, bridge)
    return spec


class _Finder(MetaPathFinder):
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return Optuna's spec, with a loader that patches it."""
        del path, target
        if name != "optuna":
            return None
        return _find_optuna([finder for finder in sys.meta_path if finder is not self], self._bridge)


class _Patching(Loader):
    """Loads Optuna with its own loader, then replaces functions."""

    def __init__(self, loader: Any, bridge: Bridge | None) -> None:
        self._loader = loader
        self._bridge = bridge

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave this to Optuna's loader, or to Python."""
        create = getattr(self._loader, "create_module", None)
        made: ModuleType | None = create(spec) if create else None
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Run Optuna's code, then patch it."""
        if hasattr(self._loader, "exec_module"):
            self._loader.exec_module(module)
        else:  # the loader of zip files, up to Python 3.9
            exec(self._loader.get_code(module.__name__), module.__dict__)  # noqa: S102
        if (module.__file__ or "").startswith(STAND_IN):
            log("Optuna is not installed: a stand-in provides its API; the study server runs samplers")
        if self._bridge is not None:
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
        replace_storages(bridge)
    for module in ("optuna.samplers", "optuna.samplers.nsgaii", "optuna.pruners"):
        loaded = sys.modules.get(module)
        for kind in list(vars(loaded).values()) if loaded else ():
            if inspect.isclass(kind) and kind.__module__.startswith("optuna."):
                _record_arguments(kind)


def _patch_study(study: type, bridge: Bridge) -> None:
    for name in ("optimize", "ask", "tell"):
        setattr(study, name, _running(getattr(study, name), getattr(bridge, name), bridge))
    for name in IGNORED:
        if hasattr(study, name):
            setattr(study, name, _ignoring(getattr(study, name), bridge))
    for name in RESULTS:
        if isinstance(vars(study).get(name), property):  # not an attribute of the stand-in's instances
            setattr(
                study, name, property(_result(vars(study)[name].fget, name), doc=vars(study)[name].__doc__)
            )
    for name in RESULT_METHODS:
        if hasattr(study, name):
            setattr(study, name, _result(getattr(study, name), name))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Return the arguments that a function takes.

    A function that Optuna wraps may still take its keyword-only arguments by position, with a warning.
    """
    signature = inspect.signature(function)
    if hasattr(function, "__wrapped__"):
        parameters = [
            one.replace(kind=one.POSITIONAL_OR_KEYWORD) if one.kind is one.KEYWORD_ONLY else one
            for one in signature.parameters.values()
        ]
        with contextlib.suppress(ValueError):  # in this order, they can't all be positional
            return signature.replace(parameters=parameters)
    return signature


def _creating(original: Callable[..., Any], bridge: Bridge) -> Callable[..., Any]:
    signature = _signature(original)

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
        if NESTED in vars(self):
            with bridge.inside:
                return original(self, *args, **kwargs)
        arguments = dict(signature.bind(self, *args, **kwargs).arguments)
        arguments.pop("self")
        return ours(self, arguments)

    return run


def _ignoring(original: Callable[..., Any], bridge: Bridge) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not bridge.owns(self):
            return original(self, *args, **kwargs)
        given = f", here: {args[0]}" if original.__name__ == "enqueue_trial" and args else ""
        log(f"{IGNORED[original.__name__]}{given}")
        return None

    return run


def _result(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def get(self: Any, *args: Any, **kwargs: Any) -> Any:
        return unknown(self, name) if is_skipped(self) else original(self, *args, **kwargs)

    return get


def _record_arguments(kind: type) -> None:
    """Let a sampler or pruner remember its arguments, to compare them with the manifest."""
    original = kind.__init__  # type: ignore[misc]
    signature = _signature(original)

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if "_tuning_arguments" not in self.__dict__:
            given = dict(signature.bind(self, *args, **kwargs).arguments)
            self.__dict__["_tuning_arguments"] = {name: given[name] for name in list(given)[1:]}
        original(self, *args, **kwargs)

    kind.__init__ = init  # type: ignore[misc]
