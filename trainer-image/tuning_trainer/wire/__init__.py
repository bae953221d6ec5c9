"""How the runtime talks to the study server."""
