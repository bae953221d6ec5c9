"""The commands: `tuning-operator`, which starts the processes, and the plugin `kubectl tuning`."""


class PluginError(Exception):
    """An error that the plugin prints: what is wrong and how to fix it."""
