"""`make demo`: creates a cluster, installs the project and runs examples/mnist."""
