"""What a trial can run: an objective, a script, a command, the refit."""
