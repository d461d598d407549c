"""Long-running tests, run by `make soak` and not by `make test`."""
