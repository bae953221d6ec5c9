"""Storages that a script names stay closed: a pod may not reach them, and the study server keeps the study.

What the script makes of Optuna's storage classes is a storage in memory, so that it can be handed about.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

from tuning_trainer.console import say

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_trainer.optuna_api.optuna_hook import Bridge

STORAGES = ("RDBStorage", "JournalStorage", "GrpcStorageProxy")


def keep_closed(bridge: Bridge) -> None:
    """Replace how storages are made, and delete_study, unless the objective is running."""
    storages = sys.modules.get("optuna.storages")
    memory = getattr(storages, "InMemoryStorage", None)
    if storages is None or memory is None:  # the stand-in
        return
    for name in STORAGES:
        if hasattr(storages, name):
            _replace(getattr(storages, name), lambda self: _become(self, memory), bridge)
    journal = sys.modules.get("optuna.storages.journal")
    for kind in list(vars(journal).values() if journal else ()):
        if inspect.isclass(kind) and kind.__name__.endswith(("Backend", "Lock")) and "__init__" in vars(kind):
            _replace(kind, _nothing, bridge)
    for module in ("optuna", "optuna.study", "optuna.study.study"):
        _keep_studies(sys.modules[module], bridge)


def _become(storage: Any, memory: type) -> None:
    storage.__class__ = memory
    storage.__init__()


def _nothing(_backend: Any) -> None:
    """Open no file and no connection."""


def _replace(kind: Any, make: Callable[[Any], None], bridge: Bridge) -> None:
    original = kind.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if bridge.inside:
            original(self, *args, **kwargs)
        else:
            make(self)

    kind.__init__ = init


def _keep_studies(module: Any, bridge: Bridge) -> None:
    original = module.delete_study

    @functools.wraps(original)
    def delete(*args: Any, **kwargs: Any) -> None:
        if bridge.inside:
            original(*args, **kwargs)
        else:
            say("delete_study is not used: a study is deleted with its manifest (spec.deletionPolicy)")

    module.delete_study = delete
