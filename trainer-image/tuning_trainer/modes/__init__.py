"""What a trial can run: an objective, a script or a command; and the refit."""
