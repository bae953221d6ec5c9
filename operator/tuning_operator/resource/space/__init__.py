"""The search space: what is wrong with one, which parameters a trial has, and each one's distribution.

Pure, so that the operator, the study server and the local mode say the same. `problems` repeats what the CEL
rules say (`tuning_operator.resource.rules`), for studies that no API server has seen.
"""

from tuning_operator.resource.space.check import problems
from tuning_operator.resource.space.values import Flaw, distribution, value_flaw, values
from tuning_operator.resource.space.walk import exists, next_parameter

__all__ = ["Flaw", "distribution", "exists", "next_parameter", "problems", "value_flaw", "values"]
