"""Lists dead letters that were written, and publishes them again; makes none."""
