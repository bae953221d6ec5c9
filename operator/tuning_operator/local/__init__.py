"""The local mode: studies whose trials are processes on this machine, with the rules of the operator."""

from tuning_operator.resource.text import installation


class LocalError(Exception):
    """What keeps a study from running on this machine; whole sentences that say how to fix it."""


NOT_INSTALLED = f"The local mode is not installed: {installation('run')}."
