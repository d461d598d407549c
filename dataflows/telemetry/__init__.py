"""Metrics, health, logs and the console."""
