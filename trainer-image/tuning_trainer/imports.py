"""Changes modules of other packages as soon as they are imported."""

from __future__ import annotations

import functools
import sys
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


def when_imported(changes: Mapping[str, Callable[[Any], None]]) -> None:
    """Call a function with each of these modules once its code has run; at once for those that are loaded."""
    missing = {name: change for name, change in changes.items() if name not in sys.modules}
    if missing:
        sys.meta_path.insert(0, _Finder(missing))
    for name in changes.keys() - missing.keys():
        changes[name](sys.modules[name])


class _Finder(MetaPathFinder):
    def __init__(self, changes: Mapping[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders find, for the modules to change."""
        if name not in self._changes:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = functools.partial(_run_and_change, spec.loader.exec_module, self._changes[name])
            spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec


def _run_and_change(run: Callable[[Any], None], change: Callable[[Any], None], module: ModuleType) -> None:
    run(module)
    change(module)
