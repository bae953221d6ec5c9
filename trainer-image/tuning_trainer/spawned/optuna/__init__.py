"""Imported as `optuna` by processes that a script spawns; the folder above is first on their module path.

Loads Optuna in its own place, connected to the pod's trial like the script's own process.
"""

import os
from pathlib import Path

from tuning_trainer.modes.refit import FinishedBridge
from tuning_trainer.modes.script import TrialBridge
from tuning_trainer.modes.workers import FOLDER, IN_OBJECTIVE, Workers
from tuning_trainer.optuna_api import hook
from tuning_trainer.runner import Run
from tuning_trainer.settings import read_settings
from tuning_trainer.stopping import Stopping

if os.environ.get(IN_OBJECTIVE):  # processes of the objective use plain Optuna
    hook.load_in_spawned_process(None)
else:
    run = Run(read_settings(os.environ), Stopping())
    if run.settings.final:
        hook.load_in_spawned_process(FinishedBridge(run.finished_study()))
    else:
        main_process, _, folder = os.environ[FOLDER].partition(":")
        hook.load_in_spawned_process(TrialBridge(run, Workers(Path(folder), int(main_process))))
