"""Prequential metrics, overall and by slice."""
