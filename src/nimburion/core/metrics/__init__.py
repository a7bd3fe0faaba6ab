"""Count jobs and calls, and turn the counters into statistics."""
