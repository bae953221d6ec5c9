"""Hears of changes and reconciles one study after another."""
