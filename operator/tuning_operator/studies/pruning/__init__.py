"""Whether a trial should stop: as Optuna's own pruners decide, at a cost that does not grow with the study.

Optuna's pruners look through all trials at each check. Here is kept what such a look would find: values in
order, by step (Median, Percentile) and by rung (SuccessiveHalving, Hyperband). The record gets what Optuna
writes to it, so that plain Optuna can go on with the study, and this with plain Optuna's.
"""

from tuning_operator.studies.pruning.base import Pruning
from tuning_operator.studies.pruning.make import make_pruning

__all__ = ["Pruning", "make_pruning"]
