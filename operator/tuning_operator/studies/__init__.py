"""The Optuna half: the study server, the only holder of database credentials. Knows nothing of Kubernetes."""
