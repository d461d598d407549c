"""Versions of models of a state directory: taken, imported, and started from."""
