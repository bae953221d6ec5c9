"""Runs as Jobs of a cluster: created, watched and examined."""
