"""Figures that the refit shows: a pod has no screen, so they become files beside the model."""

from __future__ import annotations

import functools
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning_trainer.imports import when_imported
from tuning_trainer.log import log

if TYPE_CHECKING:
    from collections.abc import Callable

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
        when_imported({"plotly.io": self._patch_plotly, "matplotlib.pyplot": self._patch_matplotlib})

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
