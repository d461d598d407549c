"""Several workers: rows are routed by key, reassembled, and follow the slowest watermark."""
