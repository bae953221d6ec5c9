"""What to do about a study: pure rules."""
