"""Optuna's names for images without Optuna. The folder above is last on the module path."""

import sys

from tuning_trainer.optuna_api.stand_in import fill

fill(sys.modules[__name__])
