"""Drift: detectors of values, and distributions compared with a reference."""
