"""Communication with the study server."""
