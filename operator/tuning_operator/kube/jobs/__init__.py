"""Work as Kubernetes Jobs: manifests and diagnoses, pure."""
