"""Django's own tests of tasks, run against our backend: see `run.py`."""
