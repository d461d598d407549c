"""State on disk: RocksDB, deltas, generations, locks."""
