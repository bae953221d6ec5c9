"""`make demo`: a real Kubernetes, the project on it, and examples/mnist from manifest to best parameters."""
