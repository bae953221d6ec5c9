"""The trainer image's ready-made objectives: tuning without writing code."""
