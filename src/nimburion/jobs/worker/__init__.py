"""The worker: reserve jobs, run them and store their outcomes."""
