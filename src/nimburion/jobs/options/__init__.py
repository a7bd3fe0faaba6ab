"""The options of jobs and of enqueue calls: policies, limits, unique keys, backoffs."""
