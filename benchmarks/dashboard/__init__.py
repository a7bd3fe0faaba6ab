"""`python -m benchmarks.dashboard`: how long the pages of the dashboard take with many jobs."""
