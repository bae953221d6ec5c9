"""Reads a command's metrics from what it writes."""
