"""The client: enqueue jobs, query them, wait for results, and handle dead letters."""
