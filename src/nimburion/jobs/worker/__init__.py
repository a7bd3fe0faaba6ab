"""The worker: reserve jobs, run them, write their outcomes."""
