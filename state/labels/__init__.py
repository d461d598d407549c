"""Predictions that wait for labels: the join, timeouts, recent ids."""
