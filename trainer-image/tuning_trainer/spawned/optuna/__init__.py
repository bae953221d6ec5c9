"""Imported as `optuna` by processes that a script spawns; the folder above is first on their module path.

Loads Optuna in its own place, connected to the pod's trial like the script's own process.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tuning_trainer.modes.init import ENVIRONMENT, RecordingBridge
from tuning_trainer.modes.refit import FinishedBridge
from tuning_trainer.modes.script import TrialBridge
from tuning_trainer.modes.workers import FOLDER, IN_OBJECTIVE, Workers
from tuning_trainer.optuna_api import hook
from tuning_trainer.optuna_api.choice import Choice
from tuning_trainer.runner import Run
from tuning_trainer.settings import read_settings
from tuning_trainer.stopping import Stopping

if TYPE_CHECKING:
    from tuning_trainer.optuna_api.bridge import Bridge


def _bridge() -> Bridge | None:
    if os.environ.get(IN_OBJECTIVE):  # processes of the objective use plain Optuna
        return None
    if ENVIRONMENT in os.environ:
        file, study = json.loads(os.environ[ENVIRONMENT])
        return RecordingBridge(_workers(), Path(file), study)
    run = Run(read_settings(os.environ), Stopping())
    if run.settings.final:
        return FinishedBridge(run.finished_study(), Choice(run.settings.config.get("study")))
    return TrialBridge(run, _workers())


def _workers() -> Workers:
    main_process, _, folder = os.environ[FOLDER].partition(":")
    return Workers(Path(folder), int(main_process))


hook.load_in_spawned_process(_bridge())
