"""A worker, a pod that takes one trial after another: its supervisor, and the fork server."""
