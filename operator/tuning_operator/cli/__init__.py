"""The commands people and containers start."""
