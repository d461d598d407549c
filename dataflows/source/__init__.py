"""Reads: input topics merged in event time, decoded, without late and duplicate rows."""
