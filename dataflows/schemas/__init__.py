"""JSON Schemas of messages, and the AsyncAPI document of a pipeline."""
