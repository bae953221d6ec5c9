"""The TuningStudy operator: the Kubernetes half (kube), the Optuna half (studies), and what both share."""
