"""What stops a command of the plugin."""


class PluginError(Exception):
    """Told to the user as it is: what is wrong, and the mend."""
