"""Rows of CSV, Parquet and JSONL files in place of messages of a topic."""
