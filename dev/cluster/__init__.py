"""A real Kubernetes for the demo and the tests, on a laptop or a bare machine: `python -m dev.cluster`."""
