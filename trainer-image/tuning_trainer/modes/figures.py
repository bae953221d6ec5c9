"""Figures that the refit shows: a pod has no screen, so they become files beside the model."""

from __future__ import annotations

import functools
import re
import shutil
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning_trainer.log import log

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from tuning_trainer.optuna_api.trial import Trial

FOLDER = "plots"
ATTRIBUTE = "plots"
"""The refit's user attribute: the paths of the files."""


class Figures:
    """Saves the figures of plotly and matplotlib that the user's code shows."""

    def __init__(self) -> None:
        self._files: list[Path] = []

    def install(self) -> None:
        """Replace `show` as soon as the user's code imports plotly or matplotlib.pyplot."""
        plotly, matplotlib = self._patch_plotly, self._patch_matplotlib
        sys.meta_path.insert(0, _Finder({"plotly.io": plotly, "matplotlib.pyplot": matplotlib}))

    def record(self, trial: Trial) -> None:
        """Move the files beside the model, if the code has recorded where it is, and record their paths."""
        if not self._files:
            return
        model = trial.user_attrs.get("model")
        if isinstance(model, str) and Path(model).exists():
            self._move(Path(model).resolve().parent / FOLDER)
        for file in self._files:
            log(f"figure: {file}")
        if ATTRIBUTE not in trial.user_attrs:  # the code may record its own
            trial.set_user_attr(ATTRIBUTE, [str(file) for file in self._files])

    def _move(self, folder: Path) -> None:
        written = self._files[0].parent
        if folder == written:
            return
        try:
            shutil.copytree(written, folder, dirs_exist_ok=True)
        except OSError as error:
            log(f"the figures can't be moved to {folder}: {error}")
            return
        shutil.rmtree(written, ignore_errors=True)
        self._files = [folder / file.name for file in self._files]

    def _save(self, title: str | None, ending: str, write: Callable[[Path], Any]) -> None:
        folder = Path(FOLDER).resolve()
        name = re.sub(r"\W+", "-", title or "").strip("-").lower() or "figure"
        taken = sum(re.fullmatch(rf"{name}(-\d+)?", file.stem) is not None for file in self._files)
        file = folder / f"{name}{f'-{taken + 1}' if taken else ''}{ending}"
        try:
            folder.mkdir(exist_ok=True)
            write(file)
        except OSError as error:  # the model counts, not its figures
            log(f"the figure {file} can't be saved: {error}")
        else:
            self._files.append(file)

    def _patch_plotly(self, module: Any) -> None:
        def show(figure: Any, *_args: Any, **_kwargs: Any) -> None:
            title = None if isinstance(figure, dict) else figure.layout.title.text
            write = functools.partial(module.write_html, figure, include_plotlyjs="directory")
            self._save(title, ".html", write)

        module.show = show

    def _patch_matplotlib(self, module: Any) -> None:
        def show(*_args: Any, **_kwargs: Any) -> None:
            for number in module.get_fignums():
                figure = module.figure(number)
                titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
                self._save(titles[0] if titles else None, ".png", figure.savefig)
            module.close("all")  # as a user does who closes the windows

        module.show = show


class _Finder(MetaPathFinder):
    """Calls a function with a module once its code has run."""

    def __init__(self, patches: dict[str, Callable[[Any], None]]) -> None:
        self._patches = patches

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the other finders find, for the modules to patch."""
        if name not in self._patches:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            run = functools.partial(_run_and_patch, spec.loader.exec_module, self._patches[name])
            spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec


def _run_and_patch(run: Callable[[Any], None], patch: Callable[[Any], None], module: ModuleType) -> None:
    run(module)
    patch(module)
