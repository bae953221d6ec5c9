"""The Kubernetes half: watches TuningStudies, decides, and runs trials as Jobs. Knows nothing of Optuna."""
