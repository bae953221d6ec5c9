"""The search space: its checks, the parameters that a trial has, and their distributions.

Pure, and shared by the operator, the study server and the local mode. `problems` repeats the checks of the
CEL rules (`tuning_operator.resource.rules`), for studies that no API server has validated.
"""

from tuning_operator.resource.space.check import problems
from tuning_operator.resource.space.conditions import exists, next_parameter
from tuning_operator.resource.space.values import Flaw, distribution, value_flaw, values

__all__ = ["Flaw", "distribution", "exists", "next_parameter", "problems", "value_flaw", "values"]
