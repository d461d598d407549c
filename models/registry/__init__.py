"""Versions of a model on disk, with their lineage."""
