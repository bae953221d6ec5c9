"""`init`: from an Optuna script to a manifest."""
