"""Whether a trial should stop: as Optuna's own pruners decide, at a cost that does not grow with the study.

Optuna's pruners read all trials at each check. Here the values are kept sorted instead, by step (Median,
Percentile) and by rung (SuccessiveHalving, Hyperband). The attributes that Optuna writes are written too, so
plain Optuna can continue the study, and this server one of plain Optuna's.
"""

from tuning_operator.studies.pruning.base import Pruning
from tuning_operator.studies.pruning.make import make_pruning

__all__ = ["Pruning", "make_pruning"]
