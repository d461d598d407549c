"""Aggregates over the events of each key, exact as of each event's own time."""
