"""A real Kubernetes cluster for the demo and the tests: `python -m dev.cluster --help`."""
