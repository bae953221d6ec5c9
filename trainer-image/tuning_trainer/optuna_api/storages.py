"""Replaces the storages that user code opens: the study server keeps the study, and pods reach no database.

Optuna's storage classes create a storage in memory instead, so that code can still pass it around.
"""

from __future__ import annotations

import functools
import inspect
import sys
from typing import TYPE_CHECKING, Any

from tuning_trainer.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

    from tuning_trainer.optuna_api.bridge import Bridge

STORAGES = ("RDBStorage", "JournalStorage", "GrpcStorageProxy")


def replace_storages(bridge: Bridge) -> None:
    """Replace the storage classes and delete_study; while the objective runs, they are Optuna's own."""
    storages = sys.modules.get("optuna.storages")
    memory = getattr(storages, "InMemoryStorage", None)
    if storages is None or memory is None:  # the stand-in has no storages
        return

    def become_memory(storage: Any) -> None:
        storage.__class__ = memory
        storage.__init__()

    for name in STORAGES:
        if hasattr(storages, name):
            _replace(getattr(storages, name), become_memory, bridge)
    journal = sys.modules.get("optuna.storages.journal")
    for kind in list(vars(journal).values() if journal else ()):
        if inspect.isclass(kind) and kind.__name__.endswith(("Backend", "Lock")) and "__init__" in vars(kind):
            _replace(kind, lambda _: None, bridge)  # opens no file and no connection
    for module in ("optuna", "optuna.study", "optuna.study.study"):
        _ignore_delete_study(sys.modules[module], bridge)


def _replace(kind: Any, make: Callable[[Any], None], bridge: Bridge) -> None:
    original = kind.__init__

    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if bridge.inside:
            original(self, *args, **kwargs)
        else:
            make(self)

    kind.__init__ = init


def _ignore_delete_study(module: Any, bridge: Bridge) -> None:
    original = module.delete_study

    @functools.wraps(original)
    def delete(*args: Any, **kwargs: Any) -> None:
        if bridge.inside:
            original(*args, **kwargs)
        else:
            log("delete_study is ignored: spec.deletionPolicy decides what happens to the study's record")

    module.delete_study = delete
