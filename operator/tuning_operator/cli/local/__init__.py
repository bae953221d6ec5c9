"""The studies on this machine: `tuning run`, and what the other commands need of them."""
