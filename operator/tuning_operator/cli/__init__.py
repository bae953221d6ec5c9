"""The commands: `tuning-operator`, which starts the processes, and the plugin `kubectl tuning`."""


class PluginError(Exception):
    """An error that a command prints: what is wrong and how to fix it."""

    code = 1
    """The exit code. 2 is that of wrong arguments."""


class NotFoundError(PluginError):
    """The study, or what else was named, does not exist."""

    code = 3


class NotPermittedError(PluginError):
    """The user lacks a permission."""

    code = 4


class NotReachableError(PluginError):
    """The cluster or the study server can't be reached, or the operator is not installed."""

    code = 5
