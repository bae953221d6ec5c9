"""Objectives of the trainer image: tuning without code of one's own."""
