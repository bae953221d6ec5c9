"""Optuna's names for an image without Optuna; this folder's parent is last on the module path."""

import sys

from tuning_trainer.optuna_api.optuna_standin import fill

fill(sys.modules[__name__])
