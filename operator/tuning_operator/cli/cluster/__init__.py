"""Studies on a Kubernetes cluster, reached as with the user's own kubectl."""
